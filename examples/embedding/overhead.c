/* What a call of flowmc costs beside the kernels that it calls: the medians of both, from a cold
 * field on.
 *
 *   usage: overhead CONFIGURATION [UPDATES]
 */
#define _POSIX_C_SOURCE 199309L
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "flowmc.h"

static int by_size(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

static double median(double *values, int count) {
  qsort(values, (size_t)count, sizeof *values, by_size);
  return values[count / 2];
}

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

int main(int count, char **words) {
  flowmc_stream *stream;
  int updates = count > 2 ? atoi(words[2]) : 300;
  if (count < 2 || updates < 1) {
    fprintf(stderr, "usage: overhead CONFIGURATION [UPDATES]\n");
    return 2;
  }
  if (flowmc_open(&stream, words[1], NULL)) goto failed;
  size_t size = flowmc_size(stream);
  double *field = calloc(size, sizeof *field);
  double *calls = calloc((size_t)updates, sizeof *calls);
  double *kernels = calloc((size_t)updates, sizeof *kernels);
  for (size_t i = 0; i < size; i += 8) field[i] = field[i + 6] = 1; /* SU(2): ones */
  for (int n = -10; n < updates; n++) { /* the first calls compile */
    double begin = now(), seconds;
    if (flowmc_update(stream, field, (uint64_t)(n + 11))) goto failed;
    double call = now() - begin;
    if (flowmc_value(stream, "hmc.seconds", &seconds)) goto failed;
    if (n >= 0) calls[n] = call, kernels[n] = seconds;
  }
  flowmc_close(stream);
  double call = median(calls, updates), kernel = median(kernels, updates);
  printf("call %.2f ms, kernel %.2f ms, ratio %.2f\n", 1e3 * call, 1e3 * kernel, call / kernel);
  free(field), free(calls), free(kernels);
  return 0;
failed:
  fprintf(stderr, "%s\n", flowmc_error());
  return 1;
}
