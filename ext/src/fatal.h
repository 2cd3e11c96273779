/* The end of a process that cannot know any more what is on its disk. */
#ifndef TRIMARAN_FATAL_H
#define TRIMARAN_FATAL_H

/* Say what failed, with the text of the error number, on standard error, and abort. */
_Noreturn void trimaran_fatal(const char *what, const char *error);

#endif
