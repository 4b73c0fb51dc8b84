/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Signals as a polled request; see interrupt.h.
 */
#include "interrupt.h"

#include <signal.h>
#include <stddef.h>

static volatile sig_atomic_t received;

static void on_signal(int number)
{
  received = number;
}

void interrupt_install(void)
{
  static const int signals[] = { SIGINT, SIGTERM, SIGHUP };

  for (size_t i = 0; i < sizeof(signals) / sizeof(signals[0]); i++) {
    struct sigaction action;

    /* nohup and background jobs ignore some of them; that stays. */
    if (sigaction(signals[i], NULL, &action) || action.sa_handler == SIG_IGN)
      continue;
    action = (struct sigaction){ .sa_handler = on_signal, .sa_flags = SA_RESETHAND | SA_RESTART };
    sigemptyset(&action.sa_mask);
    sigaction(signals[i], &action, NULL);
  }
  signal(SIGXFSZ, SIG_IGN); /* a file size limit is an error of write(2), to be told and cleaned up */
}

bool interrupt_requested(void)
{
  return received != 0;
}

void interrupt_reraise(void)
{
  if (!received)
    return;
  signal(received, SIG_DFL);
  raise(received);
}
