/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Signals; see interrupt.h. They are blocked except while the program waits for a worker.
 */
#include "interrupt.h"

#include <signal.h>
#include <stddef.h>

static const int signals[] = { SIGINT, SIGTERM, SIGHUP };
static volatile sig_atomic_t received;
static sigset_t while_waiting;

static void on_signal(int number) { received = number; }

void interrupt_install(void)
{
  sigset_t blocked;

  sigemptyset(&blocked);
  for (size_t i = 0; i < sizeof(signals) / sizeof(signals[0]); i++) {
    struct sigaction action;

    /* nohup and background jobs ignore some of them; that stays. */
    if (sigaction(signals[i], NULL, &action) || action.sa_handler == SIG_IGN)
      continue;
    action = (struct sigaction){ .sa_handler = on_signal };
    sigemptyset(&action.sa_mask);
    sigaction(signals[i], &action, NULL);
    sigaddset(&blocked, signals[i]);
  }
  sigprocmask(SIG_BLOCK, &blocked, &while_waiting);
  for (size_t i = 0; i < sizeof(signals) / sizeof(signals[0]); i++)
    sigdelset(&while_waiting, signals[i]);
}

bool interrupt_requested(void)
{
  sigset_t pending;

  if (!received && sigpending(&pending) == 0)
    for (size_t i = 0; i < sizeof(signals) / sizeof(signals[0]); i++)
      if (sigismember(&pending, signals[i]))
        received = signals[i];
  return received != 0;
}

int interrupt_poll(struct pollfd *wait) { return ppoll(wait, 1, NULL, &while_waiting) < 0 ? -1 : 0; }

void interrupt_reraise(void)
{
  sigset_t only;

  if (!received)
    return;
  signal(received, SIG_DFL);
  sigemptyset(&only);
  sigaddset(&only, received);
  raise(received);
  sigprocmask(SIG_UNBLOCK, &only, NULL);
}
