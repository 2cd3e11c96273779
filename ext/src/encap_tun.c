/* The TUN device: creation, offloads, reading and writing of one packet. */
#include "encap_internal.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <linux/if_tun.h>

#ifndef TUN_F_USO4 /* Linux 6.2 */
#define TUN_F_USO4 0x20
#define TUN_F_USO6 0x40
#endif
#define OFFLOADS_TCP (TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6)
#define OFFLOADS_UDP (TUN_F_USO4 | TUN_F_USO6)

_Static_assert(sizeof(trimaran_encap_offload) == 10, "layout of struct virtio_net_hdr");
_Static_assert(TRIMARAN_ENCAP_NAME_MAX == IFNAMSIZ, "length of an interface name");

static int attach(const char *name, short flags, char *actual_name)
{
    int fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    struct ifreq request = {.ifr_flags = flags};
    memcpy(request.ifr_name, name, strlen(name));
    if (ioctl(fd, TUNSETIFF, &request) != 0) {
        int error = -errno;
        close(fd);
        return error;
    }
    memcpy(actual_name, request.ifr_name, IFNAMSIZ);
    return fd;
}

static int set_mtu(const char *name, uint32_t mtu)
{
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -errno;
    struct ifreq request = {.ifr_mtu = (int)mtu};
    memcpy(request.ifr_name, name, IFNAMSIZ);
    int error = ioctl(fd, SIOCSIFMTU, &request) == 0 ? 0 : -errno;
    close(fd);
    return error;
}

/* Ask the kernel for all offloads it has. Returns whether it has any; *udp, whether it segments
 * UDP too. */
static bool set_offloads(int fd, bool *udp)
{
    *udp = ioctl(fd, TUNSETOFFLOAD, (unsigned long)(OFFLOADS_TCP | OFFLOADS_UDP)) == 0;
    return *udp || ioctl(fd, TUNSETOFFLOAD, (unsigned long)OFFLOADS_TCP) == 0;
}

int trimaran_encap_open_tun(const char *name, uint32_t mtu, int *offload, char *actual_name)
{
    size_t length = strlen(name);
    if (length == 0 || length >= IFNAMSIZ || strchr(name, '/') != NULL || mtu > 65535)
        return -EINVAL;
    bool udp;
    int fd = -EINVAL;
    if (*offload) {
        fd = attach(name, IFF_TUN | IFF_NO_PI | IFF_VNET_HDR, actual_name);
        if (fd >= 0 && !set_offloads(fd, &udp)) {
            close(fd);
            fd = -EINVAL;
        }
    }
    /* An old kernel answers EINVAL to what it does not have; any other error stands. */
    if (fd == -EINVAL) {
        *offload = 0;
        fd = attach(name, IFF_TUN | IFF_NO_PI, actual_name);
    }
    if (fd >= 0 && mtu != 0) {
        int error = set_mtu(actual_name, mtu);
        if (error != 0) {
            close(fd);
            return error;
        }
    }
    return fd;
}

int trimaran_encap_configure_tun(trimaran_encap_path *path)
{
    int fd = path->config.tun_fd;
    struct ifreq request = {0};
    if (ioctl(fd, TUNGETIFF, &request) != 0)
        return -errno;
    if ((request.ifr_flags & IFF_TUN) == 0 || (request.ifr_flags & IFF_NO_PI) == 0)
        return -EINVAL;
    path->vnet_header = (request.ifr_flags & IFF_VNET_HDR) != 0;
    if (path->vnet_header) {
        int size = sizeof(trimaran_encap_offload);
        if (ioctl(fd, TUNSETVNETHDRSZ, &size) != 0)
            return -errno;
        if (path->config.mode == TRIMARAN_ENCAP_FAST)
            set_offloads(fd, &path->tun_udp_offload);
        else if (ioctl(fd, TUNSETOFFLOAD, 0ul) != 0)
            return -errno;
    }
    int flags = fcntl(fd, F_GETFL);
    return fcntl(fd, F_SETFL, flags | O_NONBLOCK) == 0 ? 0 : -errno;
}

ssize_t trimaran_encap_tun_read(trimaran_encap_path *path, trimaran_encap_offload *offload)
{
    struct iovec vectors[2] = {
        {.iov_base = offload, .iov_len = sizeof *offload},
        {.iov_base = path->tun_buffer, .iov_len = TUN_BUFFER},
    };
    ssize_t size;
    *offload = (trimaran_encap_offload){0};
    do {
        if (path->vnet_header)
            size = readv(path->config.tun_fd, vectors, 2);
        else
            size = read(path->config.tun_fd, path->tun_buffer, TUN_BUFFER);
    } while (size < 0 && errno == EINTR);
    if (size < 0)
        return errno == EAGAIN ? 0 : -errno;
    if (path->vnet_header)
        size -= (ssize_t)sizeof *offload;
    /* A device that was closed under us reads as the end of a file. */
    if (size <= 0)
        return -EBADFD;
    COUNT(path, tun_reads, 1);
    return size;
}

void trimaran_encap_tun_write(trimaran_encap_path *path, trimaran_encap_offload *offload,
                              struct iovec *vectors, int count)
{
    ssize_t size;
    assert(path->vnet_header || offload->gso_type == TRIMARAN_ENCAP_GSO_NONE);
    vectors[0] = (struct iovec){.iov_base = offload, .iov_len = sizeof *offload};
    int first = path->vnet_header ? 0 : 1;
    do {
        size = writev(path->config.tun_fd, vectors + first, count + 1 - first);
    } while (size < 0 && errno == EINTR);
    COUNT(path, tun_writes, 1);
    if (size < 0)
        COUNT(path, drop_tun_write_failed, 1);
}
