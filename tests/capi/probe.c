/* What the tests ask of the library, each as one command of a program in C. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "flowmc.h"

static void get(void *context, const int *site, int mu, double *element) {
  double **field = context;
  memcpy(element, field[0] + 2 * (site[1] * 4 + site[0]) + mu, sizeof *element);
}
static void put(void *context, const int *site, int mu, const double *element) {
  double **field = context;
  memcpy(field[0] + 2 * (site[1] * 4 + site[0]) + mu, element, sizeof *element);
}

static void say(const char *what, int status) {
  printf("%s|%d|%s\n", what, status, status ? flowmc_error() : "");
}

static double seconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static long resident(void) {
  long pages = 0, found = 0;
  FILE *file = fopen("/proc/self/statm", "r");
  if (file == NULL || fscanf(file, "%ld %ld", &pages, &found) != 2) exit(3);
  fclose(file);
  return found * sysconf(_SC_PAGESIZE);
}

/* The numbers of a file, updated in place by a stream of its own. */
static int update(const char *configuration, const char *kind, const char *path, int number) {
  flowmc_stream *stream;
  if (flowmc_open(&stream, configuration, NULL)) return 3;
  size_t size = flowmc_size(stream), width = strcmp(kind, "float") ? 8 : 4;
  void *field = malloc(size * width);
  FILE *file = fopen(path, "r+b");
  if (file == NULL || fread(field, width, size, file) != size) return 3;
  int status;
  if (width == 4)
    status = flowmc_update_float(stream, field, (uint64_t)number);
  else if (strcmp(kind, "sites") == 0)
    status = flowmc_update_sites(stream, get, put, &field, (uint64_t)number);
  else
    status = flowmc_update(stream, field, (uint64_t)number);
  say("update", status);
  rewind(file);
  fwrite(field, width, size, file);
  fclose(file);
  if (!status) printf("%s\n", flowmc_report(stream));
  free(field);
  flowmc_close(stream);
  return 0;
}

static int errors(flowmc_stream *stream, const char *configuration, double *field) {
  flowmc_stream *other;
  const char *bad[] = {"chains.count=2", NULL}, *unknown[] = {"chains.cuont=1", NULL};
  double value;
  say("no file", flowmc_open(&other, "nowhere.toml", NULL));
  say("two chains", flowmc_open(&other, configuration, bad));
  say("unknown key", flowmc_open(&other, configuration, unknown));
  say("NULL", flowmc_open(&other, NULL, NULL));
  say("too early", flowmc_value(stream, "action", &value));
  printf("no report|%d|%s\n", flowmc_report(stream) == NULL, flowmc_error());
  say("good", flowmc_update(stream, field, 5));
  say("repeated", flowmc_update(stream, field, 5));
  say("unknown value", flowmc_value(stream, "hmc.aceptance", &value));
  field[3] = NAN;
  say("NaN", flowmc_update(stream, field, 6));
  field[3] = 1e300;
  say("huge", flowmc_update(stream, field, 7));
  return 0;
}

static int many(const char *configuration, double *field, int count) {
  flowmc_stream *stream;
  if (flowmc_open(&stream, configuration, NULL)) return 3;
  memset(field, 0, flowmc_size(stream) * sizeof *field);
  long before = 0;
  double begin = 0;
  for (int i = 1; i <= count + count / 5; i++) {
    if (i == count / 5 + 1) before = resident(), begin = seconds();
    if (flowmc_update(stream, field, (uint64_t)i) != FLOWMC_OK) return 3;
  }
  flowmc_close(stream);
  printf("%ld %g\n", resident() - before, (seconds() - begin) / count);
  return 0;
}

/* probe CONFIGURATION [errors | many COUNT | open PATH | update KIND FILE NUMBER | of PATH]...
 * "of" names another configuration for the updates that follow. */
int main(int count, char **words) {
  flowmc_stream *stream = NULL, *other;
  int status = flowmc_open(&stream, words[1], NULL);
  const char *path = words[1];
  say("open", status);
  if (status) return 0;
  double *field = calloc(flowmc_size(stream), sizeof *field);
  for (int i = 2; i < count && status == 0; i++) {
    if (strcmp(words[i], "errors") == 0)
      status = errors(stream, words[1], field);
    else if (strcmp(words[i], "open") == 0)
      say("open", flowmc_open(&other, words[++i], NULL));
    else if (strcmp(words[i], "many") == 0)
      status = many(words[1], field, atoi(words[++i]));
    else if (strcmp(words[i], "of") == 0)
      path = words[++i];
    else {
      status = update(path, words[i + 1], words[i + 2], atoi(words[i + 3]));
      i += 3;
    }
  }
  free(field);
  flowmc_close(stream);
  flowmc_close(NULL);
  return status;
}
