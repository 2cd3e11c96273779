/* The C interface as tables of functions, for extensions that share a process with Python.
 *
 * A program without Python links libtrimaran.so (trimaran.ext.get_library()) and calls the
 * functions of raftlog.h, watchindex.h and encap.h by name. An extension module should not link a
 * library of another package: it fetches the table from a capsule, with the functions at the end of
 * this file, which are there once Python.h was included before this header.
 *
 * Tables only grow at their end. Check `size` before using a member that came later than the header
 * you were first built with; abi_version changes if a member ever changes its meaning.
 */
#ifndef TRIMARAN_API_H
#define TRIMARAN_API_H

#include "trimaran/encap.h"
#include "trimaran/raftlog.h"
#include "trimaran/watchindex.h"

#ifdef __cplusplus
extern "C" {
#endif

#define TRIMARAN_ABI_VERSION 1

/* See raftlog.h. */
typedef struct trimaran_raftlog_api {
    uint32_t abi_version;
    uint32_t size;
    int (*open)(const char *directory, const trimaran_raftlog_options *options,
                trimaran_raftlog **out);
    int (*close)(trimaran_raftlog *log);
    int (*append)(trimaran_raftlog *log, const trimaran_hard_state *hard_state,
                  const trimaran_entry *entries, size_t count);
    int (*read)(trimaran_raftlog *log, uint64_t first, uint64_t last, uint64_t max_bytes,
                trimaran_raftlog_visitor visitor, void *context);
    uint64_t (*first_index)(trimaran_raftlog *log);
    uint64_t (*last_index)(trimaran_raftlog *log);
    int (*term)(trimaran_raftlog *log, uint64_t index, uint64_t *term);
    void (*hard_state)(trimaran_raftlog *log, trimaran_hard_state *out);
    int (*compact)(trimaran_raftlog *log, uint64_t index);
    int (*settle)(trimaran_raftlog *log);
    void (*status_get)(trimaran_raftlog *log, trimaran_raftlog_status *out);
    const char *(*open_error)(void);
    int (*reset)(trimaran_raftlog *log, const trimaran_hard_state *hard_state, uint64_t index,
                 uint64_t term);
} trimaran_raftlog_api;

/* See watchindex.h. */
typedef struct trimaran_watchindex_api {
    uint32_t abi_version;
    uint32_t size;
    int (*create)(uint64_t seed, trimaran_watchindex **out);
    void (*destroy)(trimaran_watchindex *index);
    int (*insert)(trimaran_watchindex *index, const uint8_t *key, size_t key_size,
                  const uint8_t *end, size_t end_size, void *watcher, trimaran_watch **out);
    void (*remove)(trimaran_watchindex *index, trimaran_watch *watch);
    int (*match)(trimaran_watchindex *index, const uint8_t *key, size_t key_size,
                 trimaran_watchindex_visitor visitor, void *context);
    size_t (*count)(const trimaran_watchindex *index);
    size_t (*bytes)(const trimaran_watchindex *index);
} trimaran_watchindex_api;

/* See encap.h. */
typedef struct trimaran_encap_api {
    uint32_t abi_version;
    uint32_t size;
    uint64_t (*sum)(const void *data, size_t length, uint64_t sum);
    uint16_t (*fold)(uint64_t sum);
    int (*parse)(const uint8_t *packet, size_t length, trimaran_encap_packet *parsed);
    int (*verify)(const uint8_t *packet, const trimaran_encap_packet *parsed);
    int (*decrement_ttl)(uint8_t *packet);
    int (*segment)(const uint8_t *packet, size_t length, const trimaran_encap_offload *offload,
                   uint8_t *out, size_t capacity, size_t *segment_length, size_t *total);
    int (*coalesce)(const trimaran_encap_span *packets, size_t count, int udp, uint8_t *out,
                    size_t capacity, trimaran_encap_merged *merged);
    int (*icmp_error)(const uint8_t *packet, size_t length, uint32_t from, uint8_t type,
                      uint8_t code, uint8_t *out);
    int (*routes_open)(uint32_t network, uint32_t prefix_length, uint32_t subnet_length,
                       trimaran_encap_routes **routes);
    void (*routes_close)(trimaran_encap_routes *routes);
    int (*routes_set)(trimaran_encap_routes *routes, const trimaran_encap_route *route);
    int (*routes_delete)(trimaran_encap_routes *routes, uint32_t subnet, uint32_t prefix_length);
    int (*routes_replace)(trimaran_encap_routes *routes, const trimaran_encap_route *list,
                          size_t count);
    int (*routes_lookup)(trimaran_encap_routes *routes, uint32_t address,
                         trimaran_encap_peer *peer);
    int (*open_tun)(const char *name, uint32_t mtu, int *offload, char *actual_name);
    int (*path_open)(const trimaran_encap_config *config, trimaran_encap_path **path);
    void (*path_close)(trimaran_encap_path *path);
    int (*path_start)(trimaran_encap_path *path);
    int (*path_stop)(trimaran_encap_path *path);
    int (*path_error)(const trimaran_encap_path *path);
    trimaran_encap_routes *(*path_routes)(trimaran_encap_path *path);
    void (*path_counters)(const trimaran_encap_path *path, trimaran_encap_counters *counters);
} trimaran_encap_api;

#ifdef __cplusplus
}
#endif

#ifdef Py_PYTHON_H

/* Return the table in the capsule of that name, or NULL with a Python exception set. */
static inline const void *trimaran_import_table(const char *name)
{
    const void *table;
    PyObject *module = PyImport_ImportModule("trimaran.ext.capi");

    if (module == NULL)
        return NULL;
    table = PyCapsule_Import(name, 0);
    Py_DECREF(module);
    if (table != NULL && *(const uint32_t *)table != TRIMARAN_ABI_VERSION) {
        PyErr_Format(PyExc_ImportError, "%s has another ABI version than this was built for", name);
        return NULL;
    }
    return table;
}

static inline const trimaran_raftlog_api *trimaran_import_raftlog(void)
{
    return (const trimaran_raftlog_api *)trimaran_import_table("trimaran.ext.capi.raftlog");
}

static inline const trimaran_watchindex_api *trimaran_import_watchindex(void)
{
    return (const trimaran_watchindex_api *)trimaran_import_table("trimaran.ext.capi.watchindex");
}

static inline const trimaran_encap_api *trimaran_import_encap(void)
{
    return (const trimaran_encap_api *)trimaran_import_table("trimaran.ext.capi.encap");
}

#endif
#endif
