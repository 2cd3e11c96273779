/* The route table: subnets of one length in an array, other prefixes in a short list.
 *
 * The path's thread reads without a lock. A change of one array entry is an atomic store; any other
 * change builds a new table and swaps the pointer, and the old one is freed once the thread has
 * been seen outside of it (its epoch is even, or has moved on). */
#include "encap_internal.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#define DIRECT_BITS_MAX 22
#define PREFIXES_MAX 1024

typedef struct retired_table {
    struct retired_table *next;
    route_table *table;
    uint64_t epoch;
} retired_table;

static uint32_t prefix_mask(uint32_t prefix_length)
{
    return prefix_length == 0 ? 0 : ~(uint32_t)0 << (32 - prefix_length);
}

static void table_free(route_table *table)
{
    free(table->prefixes);
    free(table);
}

static route_table *table_new(const trimaran_encap_routes *routes, uint32_t network)
{
    uint32_t count = (uint32_t)1 << (routes->subnet_length - routes->prefix_length);
    route_table *table = calloc(1, sizeof *table + count * sizeof table->direct[0]);
    if (table == NULL)
        return NULL;
    table->network = network;
    table->shift = 32 - routes->subnet_length;
    table->direct_count = count;
    return table;
}

static route_table *table_copy(const trimaran_encap_routes *routes, const route_table *old)
{
    route_table *table = table_new(routes, old->network);
    if (table == NULL)
        return NULL;
    for (uint32_t index = 0; index < old->direct_count; index++)
        table->direct[index] = atomic_load_explicit(&old->direct[index], memory_order_relaxed);
    if (old->prefix_count > 0) {
        size_t size = old->prefix_count * sizeof *old->prefixes;
        table->prefixes = malloc(size);
        if (table->prefixes == NULL) {
            table_free(table);
            return NULL;
        }
        memcpy(table->prefixes, old->prefixes, size);
    }
    table->prefix_count = old->prefix_count;
    table->longer_count = old->longer_count;
    return table;
}

uint64_t trimaran_encap_table_scan(const route_table *table, uint32_t address, uint32_t from,
                                   uint32_t to)
{
    for (uint32_t index = from; index < to; index++)
        if ((address & table->prefixes[index].mask) == table->prefixes[index].subnet)
            return table->prefixes[index].entry;
    return 0;
}

/* Free the tables the thread can no longer hold. */
static void reclaim(trimaran_encap_routes *routes)
{
    uint64_t now = atomic_load(&routes->epoch);
    retired_table **link = &routes->retired;
    while (*link != NULL) {
        retired_table *retired = *link;
        if ((now & 1) != 0 && retired->epoch == now) {
            link = &retired->next;
            continue;
        }
        *link = retired->next;
        table_free(retired->table);
        free(retired);
    }
}

/* Make `table` the current one. Cannot fail once `retired` is allocated. */
static void publish(trimaran_encap_routes *routes, route_table *table, retired_table *retired)
{
    retired->table = atomic_exchange(&routes->current, table);
    retired->epoch = atomic_load(&routes->epoch);
    retired->next = routes->retired;
    routes->retired = retired;
    reclaim(routes);
}

static bool is_direct(const trimaran_encap_routes *routes, const route_table *table,
                      uint32_t subnet, uint32_t prefix_length)
{
    return prefix_length == routes->subnet_length &&
           (subnet & prefix_mask(routes->prefix_length)) == table->network;
}

static _Atomic uint64_t *direct_entry(route_table *table, uint32_t subnet)
{
    uint32_t index = (subnet - table->network) >> table->shift;
    assert(index < table->direct_count);
    return &table->direct[index];
}

static route_prefix *find_prefix(route_table *table, uint32_t subnet, uint32_t prefix_length)
{
    for (uint32_t index = 0; index < table->prefix_count; index++) {
        route_prefix *prefix = &table->prefixes[index];
        if (prefix->subnet == subnet && prefix->prefix_length == prefix_length)
            return prefix;
    }
    return NULL;
}

static void count_longer(const trimaran_encap_routes *routes, route_table *table)
{
    table->longer_count = 0;
    while (table->longer_count < table->prefix_count &&
           table->prefixes[table->longer_count].prefix_length > routes->subnet_length)
        table->longer_count++;
}

/* Put a route into a table nobody reads yet. */
static int table_put(const trimaran_encap_routes *routes, route_table *table,
                     const trimaran_encap_route *route)
{
    uint64_t entry = (uint64_t)route->peer.address << 16 | route->peer.port;
    if (is_direct(routes, table, route->subnet, route->prefix_length)) {
        *direct_entry(table, route->subnet) = entry;
        return 0;
    }
    route_prefix *prefix = find_prefix(table, route->subnet, route->prefix_length);
    if (prefix != NULL) {
        prefix->entry = entry;
        return 0;
    }
    if (table->prefix_count >= PREFIXES_MAX)
        return -ENOSPC;
    size_t size = (table->prefix_count + 1) * sizeof *table->prefixes;
    route_prefix *prefixes = realloc(table->prefixes, size);
    if (prefixes == NULL)
        return -ENOMEM;
    table->prefixes = prefixes;
    uint32_t at = table->prefix_count++;
    for (; at > 0 && prefixes[at - 1].prefix_length < route->prefix_length; at--)
        prefixes[at] = prefixes[at - 1];
    prefixes[at] = (route_prefix){.subnet = route->subnet,
                                  .mask = prefix_mask(route->prefix_length),
                                  .prefix_length = route->prefix_length,
                                  .entry = entry};
    count_longer(routes, table);
    return 0;
}

static int check_route(const trimaran_encap_route *route)
{
    if (route->prefix_length > 32 || route->peer.port == 0)
        return -EINVAL;
    return (route->subnet & ~prefix_mask(route->prefix_length)) == 0 ? 0 : -EINVAL;
}

int trimaran_encap_routes_open(uint32_t network, uint32_t prefix_length, uint32_t subnet_length,
                               trimaran_encap_routes **routes)
{
    if (subnet_length == 0 || subnet_length > 32 || subnet_length < prefix_length ||
        subnet_length - prefix_length > DIRECT_BITS_MAX)
        return -EINVAL;
    if ((network & ~prefix_mask(prefix_length)) != 0)
        return -EINVAL;
    trimaran_encap_routes *made = calloc(1, sizeof *made);
    if (made == NULL)
        return -ENOMEM;
    made->prefix_length = prefix_length;
    made->subnet_length = subnet_length;
    route_table *table = table_new(made, network);
    if (table == NULL) {
        free(made);
        return -ENOMEM;
    }
    atomic_init(&made->current, table);
    pthread_mutex_init(&made->lock, NULL);
    *routes = made;
    return 0;
}

void trimaran_encap_routes_close(trimaran_encap_routes *routes)
{
    if (routes == NULL)
        return;
    assert((atomic_load(&routes->epoch) & 1) == 0);
    reclaim(routes);
    assert(routes->retired == NULL);
    table_free(atomic_load(&routes->current));
    pthread_mutex_destroy(&routes->lock);
    free(routes);
}

/* Change a prefix of another length: `route` to add or replace, NULL to delete `prefix`. */
static int change_prefixes(trimaran_encap_routes *routes, const trimaran_encap_route *route,
                           const route_prefix *prefix)
{
    route_table *old = atomic_load(&routes->current);
    route_table *table = table_copy(routes, old);
    retired_table *retired = malloc(sizeof *retired);
    int error = table == NULL || retired == NULL ? -ENOMEM : 0;
    if (error == 0 && route != NULL)
        error = table_put(routes, table, route);
    if (error != 0) {
        free(retired);
        if (table != NULL)
            table_free(table);
        return error;
    }
    if (route == NULL) {
        size_t index = (size_t)(prefix - old->prefixes);
        size_t behind = --table->prefix_count - index;
        memmove(&table->prefixes[index], &table->prefixes[index + 1],
                behind * sizeof *table->prefixes);
        count_longer(routes, table);
    }
    publish(routes, table, retired);
    return 0;
}

int trimaran_encap_routes_set(trimaran_encap_routes *routes, const trimaran_encap_route *route)
{
    int error = check_route(route);
    if (error != 0)
        return error;
    pthread_mutex_lock(&routes->lock);
    route_table *table = atomic_load(&routes->current);
    if (is_direct(routes, table, route->subnet, route->prefix_length))
        error = table_put(routes, table, route);
    else
        error = change_prefixes(routes, route, NULL);
    pthread_mutex_unlock(&routes->lock);
    return error;
}

int trimaran_encap_routes_delete(trimaran_encap_routes *routes, uint32_t subnet,
                                 uint32_t prefix_length)
{
    int error = -ENOENT;
    pthread_mutex_lock(&routes->lock);
    route_table *table = atomic_load(&routes->current);
    if (is_direct(routes, table, subnet, prefix_length)) {
        if ((subnet & ~prefix_mask(prefix_length)) == 0 &&
            atomic_exchange(direct_entry(table, subnet), 0) != 0)
            error = 0;
    } else {
        route_prefix *prefix = find_prefix(table, subnet, prefix_length);
        if (prefix != NULL)
            error = change_prefixes(routes, NULL, prefix);
    }
    pthread_mutex_unlock(&routes->lock);
    return error;
}

int trimaran_encap_routes_replace(trimaran_encap_routes *routes, const trimaran_encap_route *list,
                                  size_t count)
{
    for (size_t index = 0; index < count; index++)
        if (check_route(&list[index]) != 0)
            return -EINVAL;
    pthread_mutex_lock(&routes->lock);
    route_table *table = table_new(routes, atomic_load(&routes->current)->network);
    retired_table *retired = malloc(sizeof *retired);
    int error = table == NULL || retired == NULL ? -ENOMEM : 0;
    for (size_t index = 0; error == 0 && index < count; index++)
        error = table_put(routes, table, &list[index]);
    if (error == 0) {
        publish(routes, table, retired);
    } else {
        free(retired);
        if (table != NULL)
            table_free(table);
    }
    pthread_mutex_unlock(&routes->lock);
    return error;
}

int trimaran_encap_routes_lookup(trimaran_encap_routes *routes, uint32_t address,
                                 trimaran_encap_peer *peer)
{
    pthread_mutex_lock(&routes->lock);
    uint64_t entry = table_lookup(atomic_load(&routes->current), address);
    pthread_mutex_unlock(&routes->lock);
    if (entry == 0)
        return -ENETUNREACH;
    *peer = (trimaran_encap_peer){.address = (uint32_t)(entry >> 16), .port = (uint16_t)entry};
    return 0;
}
