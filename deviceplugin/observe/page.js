"use strict";
// The page is complete without this. With it, it follows what happens: each message is the whole of <main>, so none can be missed.
const main = document.querySelector("main"), stale = document.getElementById("stale");
const ages = () => {
  for (const one of document.querySelectorAll("time")) {
    const seconds = Math.max(0, (Date.now() - Date.parse(one.dateTime)) / 1000);
    const [number, unit] = seconds < 60 ? [seconds, "s"] : seconds < 3600 ? [seconds / 60, "min"] : seconds < 86400 ? [seconds / 3600, "h"] : [seconds / 86400, "d"];
    one.title = one.dateTime;
    one.textContent = `${Math.floor(number)} ${unit} ago`;
  }
};
const follow = () => {
  const source = new EventSource("live");
  source.onmessage = (event) => {
    const open = new Set([...main.querySelectorAll("details[open]")].map((one) => one.id));
    main.innerHTML = event.data;
    for (const one of main.querySelectorAll("details")) one.open = open.has(one.id);
    stale.hidden = true;
    ages();
  };
  source.onopen = () => { stale.hidden = true; };
  source.onerror = () => {
    stale.hidden = false;
    // The browser tries again by itself, unless it was refused: there are only so many places.
    if (source.readyState === EventSource.CLOSED) setTimeout(follow, 5000);
  };
};
ages();
setInterval(ages, 1000);
follow();
