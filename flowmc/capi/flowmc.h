/* flowmc: exact updates with normalizing flows, of a field in the memory of a host program.
 *
 *   flowmc_stream *stream;
 *   if (flowmc_open(&stream, "theory.toml", NULL) != FLOWMC_OK)
 *     fprintf(stderr, "%s\n", flowmc_error());
 *   for (n = 1; n <= 1000; n++) {
 *     my_trajectory(links);
 *     if (flowmc_update(stream, links, n) != FLOWMC_OK) ...
 *   }
 *   flowmc_close(stream);
 *
 * The configuration is that of `flowmc step`: [theory], [chains] with count = 1, [[update]] and,
 * if wanted, [measure].  An update applies all its kernels once.  They leave exp(-S) of [theory]
 * invariant, so the host's own updates must be for the same S.
 *
 * Every function returns a status and none ends the program; flowmc_error() says what was wrong.
 * A stream is used by one thread at a time.
 */
#ifndef FLOWMC_H
#define FLOWMC_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define FLOWMC_OK 0
#define FLOWMC_FAILED 1   /* the update failed; the field is as it was */
#define FLOWMC_UNUSABLE 2 /* an argument, the configuration or the field cannot be used */

typedef struct flowmc_stream flowmc_stream;

/* Read a configuration and load its flows.
 *
 *   stream         what was opened; NULL after an error
 *   configuration  path of the TOML file
 *   settings       values that replace those of the file, each "section.key=value" as behind
 *                  `--set`, and NULL at the end; or NULL
 */
int flowmc_open(flowmc_stream **stream, const char *configuration, const char *const *settings);

/* The same for a host whose ranks hold a part of the lattice each; collective, as all functions
 * below are then.
 *
 *   communicator  of these ranks, as MPI_Comm_c2f(...) returns it
 *   origin        of this rank's part: its first site in direction x, y, ...
 *   extents       of this rank's part in direction x, y, ...
 *
 * The parts are gathered on the first rank of the communicator, which computes the update.
 */
int flowmc_open_mpi(flowmc_stream **stream, const char *configuration, const char *const *settings,
                    int communicator, const int *origin, const int *extents);

/* The number of real numbers in the field of this rank. */
size_t flowmc_size(const flowmc_stream *stream);

/* Update the field once, in place.
 *
 *   field   SU(N) links U[t][z][y][x][mu][row][column][2], real and imaginary part, the order of
 *           ILDG files; U(1) angles theta[t][z][y][x][mu]; real fields phi[t][z][y][x].  In two
 *           dimensions U[y][x][mu]... likewise: x runs fastest among the sites.  mu = 0 is x.
 *   number  of the update, above that of the last one: with the seed of [chains] it selects the
 *           random numbers.  A host that is started again goes on with the next number.
 *
 * Links of double precision are taken bit for bit; what does not change comes back bit for bit.
 */
int flowmc_update(flowmc_stream *stream, double *field, uint64_t number);
int flowmc_update_float(flowmc_stream *stream, float *field, uint64_t number);

/* The same for any other layout: `get` and `put` copy one element from and to the host.
 *
 *   site       x, y, ... of the element, on this rank's part, from 0
 *   direction  of the link; 0 for fields on sites
 *   element    N*N complex numbers by rows, one angle, or one real number
 *
 * Nothing is put unless the update succeeded.
 */
typedef void (*flowmc_get)(void *context, const int *site, int direction, double *element);
typedef void (*flowmc_put)(void *context, const int *site, int direction, const double *element);
int flowmc_update_sites(flowmc_stream *stream, flowmc_get get, flowmc_put put, void *context,
                        uint64_t number);

/* A number of the last update: "acceptance", "energy_error", ... of a kernel as "hmc.acceptance",
 * "action" (in total), or an observable of [measure] by its name.
 */
int flowmc_value(flowmc_stream *stream, const char *name, double *value);

/* All numbers of the last update as the JSON of `flowmc step --json`; the text is the stream's own
 * and stays until the next call with it.  NULL after an error.
 */
const char *flowmc_report(flowmc_stream *stream);

/* What the last call of this thread that failed had to say; never NULL. */
const char *flowmc_error(void);

/* Close a stream; NULL is allowed. */
void flowmc_close(flowmc_stream *stream);

#ifdef __cplusplus
}
#endif

#endif
