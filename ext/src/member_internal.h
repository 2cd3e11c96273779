/* What the files of the member share among themselves. */
#ifndef TRIMARAN_MEMBER_INTERNAL_H
#define TRIMARAN_MEMBER_INTERNAL_H

#include "configuration.h"
#include "member.h"

/* A Ready whose entries are on their way to the disk. */
typedef struct trimaran_in_flight {
    uint64_t sequence, number;
} trimaran_in_flight;

/* An append held back until the messages of its Ready have been sent. */
typedef struct trimaran_staged {
    uint64_t number; /* 0: none */
    bool has_hard_state;
    trimaran_hard_state hard_state;
    trimaran_entry *entries; /* with a reference of each payload */
    size_t count, capacity;
} trimaran_staged;

/* A snapshot that raft has taken and that is not in place yet. */
typedef struct trimaran_pending_install {
    bool wanted;
    trimaran_mvcc *fresh;
    trimaran_watchhub *hub;
    const char *directory;
    trimaran_hard_state hard_state;
} trimaran_pending_install;

struct trimaran_member {
    trimaran_raft *raft;
    trimaran_member_log log;
    trimaran_mvcc *mvcc;
    trimaran_service *service;
    uint32_t election_ticks;
    uint64_t cut_tick; /* when the last batch was cut while no leader was known */
    trimaran_in_flight *flying; /* oldest first, in a ring */
    size_t flying_first, flying_count, flying_capacity;
    trimaran_staged staged;
    trimaran_pending_install install;
    int log_error;
    trimaran_raft_status status; /* as of the last Ready */
    uint64_t status_version;
    trimaran_member_post *posts;
    size_t post_count, post_capacity;
    uint64_t *snapshots;
    size_t snapshot_count, snapshot_capacity;
    bool snapshots_taken;
    trimaran_frame_entries entries;
    trimaran_buffer members_row;
    trimaran_member_counts counts;
};

/* Make a Ready's entries durable, now or later; returns true where they are already. */
bool trimaran_member_write(trimaran_member *member, const trimaran_raft_ready *ready);
/* Write what was held back, and take note of what the log thread has done. */
void trimaran_member_write_staged(trimaran_member *member);
void trimaran_member_collect(trimaran_member *member);
/* Forget what was held back. */
void trimaran_member_unstage(trimaran_member *member);

/* Install what raft asks for, or what could not be installed before. */
void trimaran_member_want_install(trimaran_member *member, const trimaran_raft_ready *ready);
void trimaran_member_try_install(trimaran_member *member);

/* The part of a turn between what came in and what goes out. */
void trimaran_member_drive(trimaran_member *member);

void trimaran_member_apply(trimaran_member *member, const trimaran_raft_ready *ready);

/* Queue messages and requests of a Ready for the owner. */
void trimaran_member_post_messages(trimaran_member *member, const trimaran_raft_ready *ready);
/* Hand unsent proposals to the leader, and reads to raft. */
void trimaran_member_send_proposals(trimaran_member *member);
/* Returns true where raft has taken a question. */
bool trimaran_member_ask_reads(trimaran_member *member);
/* Whether another leader or term was found since the status was taken. */
bool trimaran_member_has_unsent(const trimaran_member *member);

#endif
