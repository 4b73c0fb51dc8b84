/* SPDX-License-Identifier: BSD-3-Clause
 *
 * File descriptors of layers: at most a few of them are open at a time in the whole process, however
 * long chains are. A file that is opened again must still be the same one.
 */
#ifndef PCOW_FDPOOL_H
#define PCOW_FDPOOL_H

#include "layer.h"

/* Gives FD, just opened and in use by nobody, to the layer. */
void fdpool_add(struct layer *l, int fd);
/* Closes the layer's descriptor. */
void fdpool_remove(struct layer *l);
/* A descriptor until fdpool_put(), opened again if need be. -errno with a message. */
int fdpool_get(struct layer *l);
void fdpool_put(struct layer *l);

#endif
