/* The tables that the capsules hold. */
#ifndef TRIMARAN_CAPI_H
#define TRIMARAN_CAPI_H

#include "trimaran/api.h"

extern const trimaran_raftlog_api trimaran_raftlog_table;
extern const trimaran_watchindex_api trimaran_watchindex_table;
extern const trimaran_encap_api trimaran_encap_table;

#endif
