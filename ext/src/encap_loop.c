/* The life of a path, and the thread that carries its packets. */
#include "encap_internal.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/udp.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#ifndef UDP_SEGMENT /* Linux 4.18 */
#define UDP_SEGMENT 103
#endif
#ifndef UDP_GRO /* Linux 5.0 */
#define UDP_GRO 104
#endif
#define SOCKET_BUFFER (7 * 1024 * 1024) /* of UDP, where the process may force it */

static void set_buffer(int fd, int force_option, int option)
{
    int size = SOCKET_BUFFER;
    /* Past the machine's limit only with CAP_NET_ADMIN; up to it otherwise. */
    if (setsockopt(fd, SOL_SOCKET, force_option, &size, sizeof size) != 0)
        setsockopt(fd, SOL_SOCKET, option, &size, sizeof size);
}

static int configure_udp(trimaran_encap_path *path)
{
    int fd = path->config.udp_fd;
    struct sockaddr_in address;
    socklen_t length = sizeof address;
    int type;
    socklen_t type_length = sizeof type;
    if (getsockname(fd, (struct sockaddr *)&address, &length) != 0 ||
        getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &type_length) != 0)
        return -errno;
    if (address.sin_family != AF_INET || type != SOCK_DGRAM)
        return -EINVAL;
    bool fast = path->config.mode == TRIMARAN_ENCAP_FAST;
    int on = fast;
    int none = 0;
    set_buffer(fd, SO_RCVBUFFORCE, SO_RCVBUF);
    set_buffer(fd, SO_SNDBUFFORCE, SO_SNDBUF);
    setsockopt(fd, IPPROTO_UDP, UDP_GRO, &on, sizeof on); /* without it, one datagram a message */
    path->segments_max = 1;
    if (fast && setsockopt(fd, IPPROTO_UDP, UDP_SEGMENT, &none, sizeof none) == 0)
        path->segments_max = SEGMENTS_MAX;
    int flags = fcntl(fd, F_GETFL);
    return fcntl(fd, F_SETFL, flags | O_NONBLOCK) == 0 ? 0 : -errno;
}

static int watch(int epoll_fd, int fd)
{
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
    return epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event) == 0 ? 0 : -errno;
}

static int allocate(trimaran_encap_path *path)
{
    path->tun_buffer = malloc(TUN_BUFFER);
    path->transmit.arena = malloc(ARENA_LENGTH);
    path->receive.slots = malloc((size_t)RECEIVE_SLOTS * RECEIVE_SLOT_LENGTH);
    if (path->tun_buffer == NULL || path->transmit.arena == NULL || path->receive.slots == NULL)
        return -ENOMEM;
    return 0;
}

static int open_descriptors(trimaran_encap_path *path)
{
    path->stop_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    path->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (path->stop_fd < 0 || path->epoll_fd < 0)
        return -errno;
    int error = watch(path->epoll_fd, path->stop_fd);
    if (error == 0)
        error = watch(path->epoll_fd, path->config.tun_fd);
    if (error == 0)
        error = watch(path->epoll_fd, path->config.udp_fd);
    return error;
}

int trimaran_encap_path_open(const trimaran_encap_config *config, trimaran_encap_path **path)
{
    if (config->mode > TRIMARAN_ENCAP_PLAIN)
        return -EINVAL;
    trimaran_encap_path *made = aligned_alloc(64, (sizeof *made + 63) & ~(size_t)63);
    if (made == NULL)
        return -ENOMEM;
    memset(made, 0, sizeof *made);
    made->config = *config;
    made->stop_fd = made->epoll_fd = -1;
    int error = trimaran_encap_routes_open(config->network, config->prefix_length,
                                           config->subnet_length, &made->routes);
    if (error == 0)
        error = trimaran_encap_configure_tun(made);
    if (error == 0)
        error = configure_udp(made);
    if (error == 0)
        error = allocate(made);
    if (error == 0)
        error = open_descriptors(made);
    if (error != 0) {
        trimaran_encap_path_close(made);
        return error;
    }
    trimaran_encap_receive_prepare(made);
    *path = made;
    return 0;
}

void trimaran_encap_path_close(trimaran_encap_path *path)
{
    if (path == NULL)
        return;
    trimaran_encap_path_stop(path);
    if (path->stop_fd >= 0)
        close(path->stop_fd);
    if (path->epoll_fd >= 0)
        close(path->epoll_fd);
    trimaran_encap_routes_close(path->routes);
    free(path->receive.slots);
    free(path->transmit.arena);
    free(path->tun_buffer);
    free(path);
}

/* Carry what waits in both directions: how much it was, or the -errno that ends the path. */
static int carry_turn(trimaran_encap_path *path)
{
    bool fast = path->config.mode == TRIMARAN_ENCAP_FAST;
    const route_table *table = table_enter(path->routes);
    int sent = fast ? trimaran_encap_fast_transmit(path, table)
                    : trimaran_encap_plain_transmit(path, table);
    int received = 0;
    if (sent >= 0)
        received = fast ? trimaran_encap_fast_receive(path, table)
                        : trimaran_encap_plain_receive(path, table);
    table_leave(path->routes);
    if (sent < 0)
        return sent;
    return received < 0 ? received : sent + received;
}

static void *carry(void *argument)
{
    trimaran_encap_path *path = argument;
    while (!atomic_load_explicit(&path->stopping, memory_order_relaxed)) {
        int carried = carry_turn(path);
        if (carried < 0) {
            atomic_store(&path->error, carried);
            break;
        }
        struct epoll_event event;
        if (carried == 0 && epoll_wait(path->epoll_fd, &event, 1, -1) < 0 && errno != EINTR) {
            atomic_store(&path->error, -errno);
            break;
        }
    }
    return NULL;
}

int trimaran_encap_path_start(trimaran_encap_path *path)
{
    sigset_t all;
    sigset_t before;
    if (path->started)
        return -EALREADY;
    uint64_t old;
    while (read(path->stop_fd, &old, sizeof old) > 0)
        ;
    atomic_store(&path->stopping, false);
    atomic_store(&path->error, 0);
    /* Signals are the caller's business. */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = pthread_create(&path->thread, NULL, carry, path);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    path->started = error == 0;
    if (path->started)
        pthread_setname_np(path->thread, "trimaran-encap"); /* for ps and profiles */
    return -error;
}

int trimaran_encap_path_stop(trimaran_encap_path *path)
{
    if (!path->started)
        return 0;
    uint64_t one = 1;
    atomic_store(&path->stopping, true);
    ssize_t written = write(path->stop_fd, &one, sizeof one);
    assert(written == sizeof one);
    int error = pthread_join(path->thread, NULL);
    assert(error == 0);
    path->started = false;
    return atomic_load(&path->error);
}

int trimaran_encap_path_error(const trimaran_encap_path *path)
{
    return atomic_load(&path->error);
}

trimaran_encap_routes *trimaran_encap_path_routes(trimaran_encap_path *path)
{
    return path->routes;
}

void trimaran_encap_path_counters(const trimaran_encap_path *path,
                                  trimaran_encap_counters *counters)
{
    const uint64_t *from = (const uint64_t *)&path->counters;
    uint64_t *to = (uint64_t *)counters;
    for (size_t index = 0; index < sizeof *counters / sizeof *to; index++)
        to[index] = __atomic_load_n(&from[index], __ATOMIC_RELAXED);
}
