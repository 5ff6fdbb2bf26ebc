/* devprobe [--mknod c:MAJOR:MINOR | PATH]...: says which device files this container may open.
 *
 * Each argument is opened O_RDWR. One line of JSON goes to stdout at the start and one more at every SIGUSR1:
 *   {"seq": 1, "devices": {"/dev/fuse": "ok", "/dev/none": "ENOENT", "c:10:229": "EPERM"}, "env": {"NAME": "value"}}
 * --mknod makes a device node of its own first. A container that was not given a device has no file to open, so only this way can
 * it be seen whether the device cgroup refuses the device (EPERM). The key is then the argument, not the path.
 * SIGTERM and SIGINT end it with status 0. Without arguments it serves as the pause image.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

static void put_string(const char *text, size_t length) {
    putchar('"');
    for (size_t i = 0; i < length; i++) {
        unsigned char c = (unsigned char)text[i];
        if (c == '"' || c == '\\') {
            printf("\\%c", c);
        } else if (c < 0x20) {
            printf("\\u%04x", c);
        } else {
            putchar(c);
        }
    }
    putchar('"');
}

static void put_result(const char *key, int error) {
    const char *name = error ? strerrorname_np(error) : "ok";
    put_string(key, strlen(key));
    printf(": ");
    put_string(name ? name : "unknown", strlen(name ? name : "unknown"));
}

static int try_open(const char *path) {
    int fd = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
    if (fd < 0) return errno;
    close(fd);
    return 0;
}

/* Makes the node of spec (c:MAJOR:MINOR or b:MAJOR:MINOR) and opens it; an errno, or 0. */
static int try_mknod(const char *spec) {
    char kind;
    unsigned major_number, minor_number;
    char path[64];
    if (sscanf(spec, "%c:%u:%u", &kind, &major_number, &minor_number) != 3 || (kind != 'c' && kind != 'b')) return EINVAL;
    snprintf(path, sizeof path, "/.devprobe-%c-%u-%u", kind, major_number, minor_number);
    if (mknod(path, 0600 | (kind == 'c' ? S_IFCHR : S_IFBLK), makedev(major_number, minor_number)) != 0 && errno != EEXIST) return errno;
    return try_open(path);
}

static void report(int seq, int argc, char **argv) {
    printf("{\"seq\": %d, \"devices\": {", seq);
    const char *separator = "";
    for (int i = 1; i < argc; i++, separator = ", ") {
        printf("%s", separator);
        if (strcmp(argv[i], "--mknod") == 0 && i + 1 < argc) {
            i++;
            put_result(argv[i], try_mknod(argv[i]));
        } else {
            put_result(argv[i], try_open(argv[i]));
        }
    }
    printf("}, \"env\": {");
    separator = "";
    for (char **entry = environ; *entry; entry++) {
        const char *equals = strchr(*entry, '=');
        if (!equals) continue;
        printf("%s", separator);
        separator = ", ";
        put_string(*entry, (size_t)(equals - *entry));
        printf(": ");
        put_string(equals + 1, strlen(equals + 1));
    }
    printf("}}\n");
    fflush(stdout);
}

int main(int argc, char **argv) {
    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGUSR1);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGINT);
    sigaddset(&signals, SIGCHLD);
    /* Blocked before the first report, so that no request can be lost; a blocked signal also reaches process 1 of a container. */
    sigprocmask(SIG_BLOCK, &signals, NULL);
    if (argc > 1) report(1, argc, argv);
    for (int seq = 2;;) {
        int received = 0;
        if (sigwait(&signals, &received) != 0) return 1;
        if (received == SIGUSR1) {
            report(seq++, argc, argv);
        } else if (received == SIGCHLD) {
            while (waitpid(-1, NULL, WNOHANG) > 0) continue; /* process 1 inherits orphans */
        } else {
            return 0;
        }
    }
}
