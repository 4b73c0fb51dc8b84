/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The progress line; see progress.h.
 */
#include "progress.h"

#include "interrupt.h"
#include "report.h"

#include <stdio.h>

static bool shown;
static int last; /* hundredths of a percent that were drawn */

static void draw(int hundredths)
{
  fprintf(stderr, "    (%d.%02d/100%%)\r", hundredths / 100, hundredths % 100);
  last = hundredths;
}

void progress_start(bool show)
{
  interrupt_install();
  shown = show;
  if (shown)
    draw(0);
}

int progress_update(void *opaque, uint64_t done, uint64_t total)
{
  (void)opaque;
  if (shown && total) {
    int hundredths = (int)((double)(done < total ? done : total) / (double)total * 10000);

    if (hundredths >= last + 100 || (hundredths == 10000 && last != hundredths))
      draw(hundredths);
  }
  return interrupt_requested();
}

int progress_step(uint64_t done, uint64_t total)
{
  return progress_update(NULL, done, total) ? report_fail("interrupted") : 0;
}

void progress_end(bool success)
{
  if (!shown)
    return;
  if (success && last != 10000)
    draw(10000);
  fputc('\n', stderr);
  shown = false;
}
