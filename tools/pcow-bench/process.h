/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Other programs. Every child dies with the process that started it, and writes nowhere but here.
 */
#ifndef PCOW_BENCH_PROCESS_H
#define PCOW_BENCH_PROCESS_H

#include "bench.h"

#define PROCESS_ARGS(...) ((const char *const[]){ __VA_ARGS__, NULL })

/* The program's path, searched in PATH and the sbin directories, or NULL. To be freed. */
char *process_find(const char *program);

/* BENCH_OK, or BENCH_SKIPPED with the sentence that PROGRAM is not installed. */
int process_needs(const char *program);

/* Runs a command to its end. Its standard output goes to *OUTPUT (NULL: nowhere), its time to
 * *NANOSECONDS (may be NULL). A failure's message has the last line of its standard error. */
int process_run(const char *const *argv, char **output, uint64_t *nanoseconds);

/* The same with the printf-formatted text on its standard input. */
int process_feed(const char *const *argv, const char *input);

struct process {
  pid_t pid;
  int to, from; /* its standard input and output */
};

/* Starts a command and leaves it running. Its standard error goes to the file ERRORS (NULL: nowhere). */
int process_start(const char *const *argv, const char *errors, struct process *process);
/* It is running still. */
bool process_alive(struct process *process);
void process_stop(struct process *process);

/* The calling process dies when PARENT does. */
void process_die_with(pid_t parent);

/* DRAM that a process has for itself, and its VMAs. 0: the calling process. */
void process_memory(pid_t pid, struct sample *sample);

/* Touches and frees BYTES of memory: what was freed before may have gone back to a host, and would make
 * first touches slow. */
void memory_warm(uint64_t bytes);

#endif
