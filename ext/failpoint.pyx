"""Named places at which a test can kill the process; the table is in src/failpoint.h."""

cdef dict read_table():
    table = {}
    number = 1
    while trimaran_failpoint_name(number) != NULL:
        table[trimaran_failpoint_name(number).decode()] = (
            number, trimaran_failpoint_where(number).decode())
        number += 1
    return table


cdef dict TABLE = read_table()


def names():
    return {name: where for name, (_, where) in TABLE.items()}


def hit(str name):
    cdef int number = TABLE[name][0]
    trimaran_failpoint(<trimaran_failpoint_id>number)
