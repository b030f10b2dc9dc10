/* A program with an HMC of its own, two-dimensional U(1), that lets flowmc move the field between
 * its trajectories.  Its angles lie in the order of ILDG, theta[t][x][mu], so that flowmc works on
 * them in place.  Under MPI every rank has some of the time slices.
 *
 *   usage: u1_hmc CONFIGURATION [UPDATES]
 */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "flowmc.h"

#ifdef WITH_MPI
#include <mpi.h>
#endif

#define X 16
#define T 16
#define BETA 7.0
#define STEPS 8

static int rank = 0, ranks = 1, slices = T; /* of this rank */
static double *theta;                       /* [slices + 2][X][2]: a slice of both neighbours */
static double *momentum;                    /* [slices][X][2] */

static double *link(double *field, int t, int x, int mu) {
  return field + 2 * ((size_t)t * X + (size_t)((x + X) % X)) + mu;
}

/* The host's random numbers: uniform in [0, 1), and normal. */
static uint64_t seed_of_host;
static double uniform(void) {
  uint64_t z = (seed_of_host += 0x9e3779b97f4a7c15u);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return (double)((z ^ (z >> 31)) >> 11) * 0x1p-53;
}
static double normal(void) {
  return sqrt(-2 * log(1 - uniform())) * cos(2 * acos(-1.0) * uniform());
}

static double sum_over_ranks(double value) {
#ifdef WITH_MPI
  MPI_Allreduce(MPI_IN_PLACE, &value, 1, MPI_DOUBLE, MPI_SUM, MPI_COMM_WORLD);
#endif
  return value;
}

/* Slices 0 and slices + 1 are copies of the neighbours' last and first. */
static void exchange_slices(void) {
  size_t n = 2 * X;
  double *first = theta + n, *last = theta + n * (size_t)slices;
  double *before = theta, *after = last + n;
#ifdef WITH_MPI
  int up = (rank + 1) % ranks, down = (rank + ranks - 1) % ranks;
  MPI_Sendrecv(last, (int)n, MPI_DOUBLE, up, 0, before, (int)n, MPI_DOUBLE, down, 0,
               MPI_COMM_WORLD, MPI_STATUS_IGNORE);
  MPI_Sendrecv(first, (int)n, MPI_DOUBLE, down, 1, after, (int)n, MPI_DOUBLE, up, 1,
               MPI_COMM_WORLD, MPI_STATUS_IGNORE);
#else
  memcpy(before, last, n * sizeof *theta);
  memcpy(after, first, n * sizeof *theta);
#endif
}

/* theta_x(t, x) + theta_t(t, x + 1) - theta_x(t + 1, x) - theta_t(t, x) */
static double plaquette(int t, int x) {
  return *link(theta, t, x, 0) + *link(theta, t, x + 1, 1) - *link(theta, t + 1, x, 0) -
         *link(theta, t, x, 1);
}

static double mean_plaquette(void) {
  double sum = 0;
  exchange_slices();
  for (int t = 1; t <= slices; t++)
    for (int x = 0; x < X; x++) sum += cos(plaquette(t, x));
  return sum_over_ranks(sum) / (X * T);
}

/* S = -beta sum cos P + sum p^2 / 2 */
static double energy(void) {
  double kinetic = 0;
  for (int i = 0; i < 2 * slices * X; i++) kinetic += momentum[i] * momentum[i] / 2;
  return sum_over_ranks(kinetic) - BETA * X * T * mean_plaquette();
}

static void kick(double step) {
  exchange_slices();
  for (int t = 1; t <= slices; t++)
    for (int x = 0; x < X; x++) {
      double own = sin(plaquette(t, x));
      double force_x = BETA * (own - sin(plaquette(t - 1, x)));
      double force_t = BETA * (sin(plaquette(t, x - 1)) - own);
      *link(momentum, t - 1, x, 0) -= step * force_x;
      *link(momentum, t - 1, x, 1) -= step * force_t;
    }
}

static void drift(double step) {
  for (int i = 0; i < 2 * slices * X; i++) theta[2 * X + i] += step * momentum[i];
}

/* One trajectory of length 1, leapfrog; returns whether it was accepted. */
static int trajectory(double *old) {
  size_t n = 2 * (size_t)slices * X;
  double step = 1.0 / STEPS;
  memcpy(old, theta + 2 * X, n * sizeof *old);
  for (size_t i = 0; i < n; i++) momentum[i] = normal();
  double before = energy();
  kick(step / 2);
  for (int i = 0; i < STEPS; i++) {
    drift(step);
    kick(i + 1 < STEPS ? step : step / 2);
  }
  double gain = before - energy();
  int accepted = rank == 0 && log(1 - uniform()) < gain;
#ifdef WITH_MPI
  MPI_Bcast(&accepted, 1, MPI_INT, 0, MPI_COMM_WORLD);
#endif
  if (!accepted) memcpy(theta + 2 * X, old, n * sizeof *old);
  return accepted;
}

static int stop(const char *what) {
  if (rank == 0) fprintf(stderr, "u1_hmc: %s: %s\n", what, flowmc_error());
#ifdef WITH_MPI
  MPI_Finalize();
#endif
  return 1;
}

int main(int count, char **words) {
#ifdef WITH_MPI
  MPI_Init(&count, &words);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &ranks);
#endif
  int updates = count > 2 ? atoi(words[2]) : 1000;
  slices = T / ranks;
  if (count < 2 || slices * ranks != T) {
    fprintf(stderr, "usage: u1_hmc CONFIGURATION [UPDATES], on a number of ranks that divides %d\n",
            T);
    return 2;
  }
  seed_of_host = 1000 + (uint64_t)rank;
  size_t n = 2 * (size_t)slices * X;
  theta = calloc(n + 4 * X, sizeof *theta);
  momentum = calloc(n, sizeof *momentum);
  double *old = calloc(n, sizeof *old);

  flowmc_stream *stream;
#ifdef WITH_MPI
  int origin[2] = {0, rank * slices}, extents[2] = {X, slices};
  int status = flowmc_open_mpi(&stream, words[1], NULL, (int)MPI_Comm_c2f(MPI_COMM_WORLD), origin,
                               extents);
#else
  int status = flowmc_open(&stream, words[1], NULL);
#endif
  if (status != FLOWMC_OK) return stop(words[1]);
  if (flowmc_size(stream) != n) return stop("another lattice than that of this program");

  /* A cold start, and some updates that do not count. */
  int discarded = updates / 10, accepted = 0;
  double sum = 0, squares = 0, accepted_by_flow = 0, charge = 0, square_of_charge = 0;
  for (int i = 1; i <= discarded + updates; i++) {
    int was_accepted = trajectory(old);
    if (flowmc_update(stream, theta + 2 * X, (uint64_t)i) != FLOWMC_OK) return stop("update");
    if (i <= discarded) continue;
    double value, share;
    if (flowmc_value(stream, "independence.acceptance", &share) != FLOWMC_OK ||
        flowmc_value(stream, "topological_charge", &charge) != FLOWMC_OK)
      return stop("value");
    value = mean_plaquette();
    sum += value, squares += value * value, accepted += was_accepted;
    accepted_by_flow += share, square_of_charge += charge * charge;
  }
  double mean = sum / updates, spread = squares / updates - mean * mean;
  if (rank == 0) {
    printf("plaquette %.5f, error of independent fields %.5f\n", mean, sqrt(spread / updates));
    printf("Q^2 %.4f\n", square_of_charge / updates);
    printf("accepted: %.0f %% of the trajectories, %.0f %% of the flow's proposals\n",
           100.0 * accepted / updates, 100.0 * accepted_by_flow / updates);
  }
  flowmc_close(stream);
  free(theta), free(momentum), free(old);
#ifdef WITH_MPI
  MPI_Finalize();
#endif
  return 0;
}
