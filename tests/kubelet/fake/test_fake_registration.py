# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable

import grpc
import pytest

from deviceplugin.kubelet import deviceplugin_v1beta1_pb2 as pb
from deviceplugin.testing import Kubelet
from deviceplugin.testing.names import go_quoted, is_extended_resource
from tests.kubelet.fake.scripted import RESOURCE, Refuse, Scripted, healthy, register, register_bytes

KubeletWith = Callable[..., Kubelet]

OUT_OF_TIME = (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNKNOWN)  # whichever side notices first


def refusal(kubelet: Kubelet, *args: str, **kwargs: float | str) -> grpc.Call:
    with pytest.raises(grpc.RpcError) as error:
        register(kubelet, *args, **kwargs)  # type: ignore[arg-type]
    return error.value


def test_a_plugin_registers_and_its_devices_are_listed(kubelet: Kubelet) -> None:
    with Scripted(kubelet, healthy("a", "b")) as plugin:
        plugin.register()
        kubelet.wait_for(RESOURCE, healthy=2, unhealthy=0)
        assert (kubelet.capacity(RESOURCE), kubelet.allocatable(RESOURCE), kubelet.streams(RESOURCE)) == (2, 2, 1)


def test_errors_are_unknown_with_the_kubelets_text(kubelet: Kubelet) -> None:
    wrong_version = refusal(kubelet, RESOURCE, "x.sock", version="v1")
    assert wrong_version.code() is grpc.StatusCode.UNKNOWN
    assert wrong_version.details() == 'requested API version "v1" is not supported by kubelet. Supported version is ["v1beta1"]'
    wrong_name = refusal(kubelet, 'say "hi"', "x.sock")
    assert (wrong_name.code(), wrong_name.details()) == (grpc.StatusCode.UNKNOWN, r'the ResourceName "say \"hi\"" is invalid')


@pytest.mark.parametrize(
    ("name", "good"),
    [
        ("vendor.example/gpu", True),
        ("a/b", True),
        ("vendor.example/GPU_1.x", True),
        ("v" * 244 + "/x", True),
        ("v" * 245 + "/x", False),
        ("vendor.example/" + "x" * 63, True),
        ("vendor.example/" + "x" * 64, False),
        ("gpu", False),
        ("Vendor.example/gpu", False),
        ("a/b/c", False),
        ("vendor.example/", False),
        ("/gpu", False),
        ("x.kubernetes.io/gpu", False),
        ("requests.vendor.example/gpu", False),
        ("vendor.example/-gpu", False),
        ("vendor..example/gpu", False),
        ("vendor.example/gpu\n", False),
    ],
)
def test_resource_names_are_judged_as_quota_keys(name: str, good: bool) -> None:
    assert is_extended_resource(name) is good


def test_names_are_quoted_as_go_does() -> None:
    assert go_quoted('a"b\\\n\x00é\u2028') == r'"a\"b\\\n\x00é\u2028"'


def test_the_requests_options_are_ignored(kubelet: Kubelet) -> None:
    with Scripted(kubelet, healthy("a")) as plugin:
        plugin.register()  # says that PreStartContainer is required; the plugin's own options say that it is not
        endpoint = kubelet.endpoint(RESOURCE)
        assert endpoint is not None
        assert endpoint.options == pb.DevicePluginOptions()


def test_the_kubelet_dials_back_before_it_answers(kubelet: Kubelet) -> None:
    asked = threading.Event()
    with Scripted(kubelet, healthy("a")) as plugin:

        def options() -> pb.DevicePluginOptions:
            asked.set()
            plugin.hold.wait(5)
            return pb.DevicePluginOptions()

        plugin.options = options
        call = threading.Thread(target=plugin.register)
        call.start()
        assert asked.wait(5)
        assert call.is_alive()
        assert not kubelet.events.of("registered")
        plugin.hold.set()
        call.join(5)
        kubelet.wait_for(RESOURCE, healthy=1)


def test_a_socket_that_nobody_serves_fails_the_registration_after_the_dial_timeout(kubelet_with: KubeletWith) -> None:
    kubelet = kubelet_with(dial_timeout=0.3)
    missing = refusal(kubelet, RESOURCE, "nobody.sock")
    assert (missing.code(), missing.details()) == (grpc.StatusCode.UNKNOWN, "failed to dial device plugin: context deadline exceeded")
    directory = refusal(kubelet, RESOURCE, "")
    assert directory.details() == "failed to dial device plugin: context deadline exceeded"


def test_the_dial_ends_with_the_callers_deadline(kubelet: Kubelet) -> None:
    assert refusal(kubelet, RESOURCE, "nobody.sock", timeout=0.3).code() in OUT_OF_TIME
    error = str(kubelet.wait_for_event("register failed", RESOURCE, timeout=5).detail["error"])
    assert error in ("failed to dial device plugin: context deadline exceeded", "failed to dial device plugin: context canceled")


def test_options_that_fail_or_are_missing_fail_the_registration(kubelet: Kubelet) -> None:
    with Scripted(kubelet, healthy("a")) as plugin:

        def no_options() -> pb.DevicePluginOptions:
            raise Refuse("not today")

        plugin.options = no_options
        error = refusal(kubelet, RESOURCE, plugin.name)
        assert error.details() == "failed to get device plugin options: rpc error: code = Unknown desc = not today"
        assert kubelet.streams(RESOURCE) == 0


def test_an_endpoint_climbs_and_is_re_rooted_as_a_joined_path(kubelet: Kubelet) -> None:
    with Scripted(kubelet, healthy("a"), directory=os.path.dirname(kubelet.device_plugins)) as plugin:
        plugin.register(endpoint=f"/../{plugin.name}")
        kubelet.wait_for(RESOURCE, healthy=1)


def test_a_percent_sign_in_a_socket_name_is_decoded_and_a_question_mark_cuts_it(kubelet_with: KubeletWith) -> None:
    kubelet = kubelet_with(dial_timeout=0.3)
    with Scripted(kubelet, healthy("a"), name="A") as plugin:
        plugin.register(endpoint="%41")
        kubelet.wait_for(RESOURCE, healthy=1)
        plugin.register("vendor.example/other", endpoint="A?b")
        kubelet.wait_for("vendor.example/other", healthy=1)
        assert "invalid URL escape" in refusal(kubelet, RESOURCE, "%zz").details()


def test_bytes_that_are_no_request_are_refused(kubelet: Kubelet) -> None:
    with pytest.raises(grpc.RpcError) as error:
        register_bytes(kubelet, b"\x1a\x02\xff\xfe")  # a resource name that is not UTF-8
    assert error.value.code() is grpc.StatusCode.INTERNAL


def test_a_refusal_can_be_asked_for(kubelet: Kubelet) -> None:
    kubelet.faults.refuse(2, "node is busy")
    with Scripted(kubelet, healthy("a")) as plugin:
        assert refusal(kubelet, RESOURCE, plugin.name).details() == "node is busy"
        assert refusal(kubelet, RESOURCE, plugin.name).details() == "node is busy"
        plugin.register()
        kubelet.wait_for(RESOURCE, healthy=1)


def test_the_dial_back_can_be_delayed_past_the_callers_patience(kubelet: Kubelet) -> None:
    kubelet.faults.dial_delay = 30
    with Scripted(kubelet, healthy("a")) as plugin:
        assert refusal(kubelet, RESOURCE, plugin.name, timeout=0.2).code() in OUT_OF_TIME
        kubelet.wait_for_event("register failed", RESOURCE)


def test_the_socket_stays_behind_when_the_kubelet_dies_and_refuses_connections(kubelet: Kubelet) -> None:
    kubelet.kill()
    with socket.socket(socket.AF_UNIX) as client, pytest.raises(ConnectionRefusedError):
        client.connect(kubelet.socket)
    kubelet.start()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(kubelet.socket)


def test_a_deaf_socket_connects_and_never_answers(kubelet: Kubelet) -> None:
    with kubelet.deaf(), socket.socket(socket.AF_UNIX) as client:
        client.settimeout(0.1)
        client.connect(kubelet.socket)
        with pytest.raises(TimeoutError):
            client.recv(1)
    kubelet.start()


def test_a_start_removes_all_sockets_and_nothing_else(kubelet: Kubelet) -> None:
    strangers = socket.socket(socket.AF_UNIX)
    with strangers, Scripted(kubelet, healthy("a")) as plugin:
        plugin.register()
        kubelet.wait_for(RESOURCE, healthy=1)
        strangers.bind(os.path.join(kubelet.device_plugins, "stranger.sock"))
        os.mkdir(os.path.join(kubelet.device_plugins, "directory"))
        with open(os.path.join(kubelet.device_plugins, "file"), "w") as file:
            file.write("kept")
        kubelet.restart()
        assert sorted(os.listdir(kubelet.device_plugins)) == ["directory", "file", "kubelet.sock", "kubelet_internal_checkpoint"]


def test_each_start_makes_a_new_socket_and_can_try_for_the_old_inode_number(kubelet: Kubelet) -> None:
    before = os.stat(kubelet.socket)
    same = kubelet.restart(same_inode=True)
    after = os.stat(kubelet.socket)
    assert (after.st_ino == before.st_ino) is same
    assert after.st_ctime_ns != before.st_ctime_ns


def test_a_root_too_long_for_sockets_is_refused_with_the_reason(short_root: str) -> None:
    with pytest.raises(ValueError, match=r"the root is too long: .* Use a shorter directory"):
        Kubelet(os.path.join(short_root, "x" * 60))


@pytest.mark.parametrize("settings", [{"semantics": "v137"}, {"topology_policy": "strict"}, {"numa": 9}])
def test_settings_that_no_kubelet_has_are_refused(short_root: str, settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings)).replace("numa", "numa has 9")):
        Kubelet(short_root, **settings)  # type: ignore[arg-type]


def test_a_wait_that_fails_says_for_what_and_what_is_and_what_happened(kubelet_with: KubeletWith) -> None:
    kubelet = kubelet_with(seed=7)
    with Scripted(kubelet, healthy("a")) as plugin:
        plugin.register()
        kubelet.wait_for(RESOURCE, healthy=1)
        with pytest.raises(AssertionError) as error:
            kubelet.wait_for(RESOURCE, healthy=5, timeout=0.05)
    text = str(error.value)
    assert "waited 0.05 s for vendor.example/device with 5 healthy" in text
    assert "vendor.example/device: 1 healthy, 0 unhealthy, 1 streams (seed=7)" in text
    assert "registered vendor.example/device" in text
