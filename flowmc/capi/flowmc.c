/* The functions of flowmc.h around those that Python defines.
 *
 * A function that Python defines returns its status plus one: where Python itself cannot be
 * started, cffi lets it return zero.
 */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "flowmc.h"

#define MOST_DIMENSIONS 16

struct flowmc_stream {
  int64_t key; /* of the stream in Python */
  int32_t dimensions;
  int32_t directions;                /* elements on a site */
  int32_t element;                   /* real numbers of one element */
  int32_t extents[MOST_DIMENSIONS];  /* of this rank's part */
  size_t size;                       /* real numbers of this rank */
  char *report;
};

int flowmc_python_open(const char *configuration, const char *const *settings, int has_ranks,
                       int communicator, const int *origin, const int *extents, int64_t *key,
                       int32_t *shape);
int flowmc_python_update(int64_t key, void *field, int bits, uint64_t number);
int flowmc_python_value(int64_t key, const char *name, double *value);
int flowmc_python_report(int64_t key, char *text, size_t room, size_t *length);
int flowmc_python_close(int64_t key);

static _Thread_local char flowmc_message[4096] = "no call has failed";

void flowmc_set_message(const char *text) {
  snprintf(flowmc_message, sizeof flowmc_message, "%s", text);
}

const char *flowmc_error(void) { return flowmc_message; }

static int unusable(const char *text) {
  flowmc_set_message(text);
  return FLOWMC_UNUSABLE;
}

static int status_of(int returned) {
  if (returned > 0) return returned - 1;
  return unusable(
      "Python, or flowmc in it, could not be started; standard error says why: build the library "
      "again, with the Python that has flowmc");
}

static int open_stream(flowmc_stream **stream, const char *configuration,
                       const char *const *settings, int has_ranks, int communicator,
                       const int *origin, const int *extents) {
  int32_t shape[MOST_DIMENSIONS + 3];
  int64_t key = 0;
  if (stream == NULL) return unusable("flowmc_open: stream is NULL");
  *stream = NULL;
  if (configuration == NULL) return unusable("flowmc_open: configuration is NULL");
  if (has_ranks && (origin == NULL || extents == NULL))
    return unusable("flowmc_open_mpi: origin or extents is NULL");
  /* Modules of Python look for its symbols among those of the program, where they are not if a
   * host has loaded this library for itself. */
  dlopen(FLOWMC_LIBPYTHON, RTLD_LAZY | RTLD_NOLOAD | RTLD_GLOBAL);
  int status = status_of(flowmc_python_open(configuration, settings, has_ranks, communicator,
                                            origin, extents, &key, shape));
  if (status != FLOWMC_OK) return status;
  flowmc_stream *made = calloc(1, sizeof *made);
  if (made == NULL) {
    flowmc_python_close(key);
    return unusable("flowmc_open: no memory");
  }
  made->key = key;
  made->dimensions = shape[0];
  made->directions = shape[1];
  made->element = shape[2];
  made->size = (size_t)made->directions * (size_t)made->element;
  for (int i = 0; i < made->dimensions; i++) {
    made->extents[i] = shape[3 + i];
    made->size *= (size_t)made->extents[i];
  }
  *stream = made;
  return FLOWMC_OK;
}

int flowmc_open(flowmc_stream **stream, const char *configuration, const char *const *settings) {
  return open_stream(stream, configuration, settings, 0, 0, NULL, NULL);
}

int flowmc_open_mpi(flowmc_stream **stream, const char *configuration, const char *const *settings,
                    int communicator, const int *origin, const int *extents) {
  return open_stream(stream, configuration, settings, 1, communicator, origin, extents);
}

size_t flowmc_size(const flowmc_stream *stream) { return stream == NULL ? 0 : stream->size; }

static int update(flowmc_stream *stream, void *field, int bits, uint64_t number) {
  if (stream == NULL || field == NULL) return unusable("flowmc_update: stream or field is NULL");
  return status_of(flowmc_python_update(stream->key, field, bits, number));
}

int flowmc_update(flowmc_stream *stream, double *field, uint64_t number) {
  return update(stream, field, 64, number);
}

int flowmc_update_float(flowmc_stream *stream, float *field, uint64_t number) {
  return update(stream, field, 32, number);
}

int flowmc_update_sites(flowmc_stream *stream, flowmc_get get, flowmc_put put, void *context,
                        uint64_t number) {
  if (stream == NULL || get == NULL || put == NULL)
    return unusable("flowmc_update_sites: stream, get or put is NULL");
  double *field = malloc(stream->size * sizeof *field);
  if (field == NULL) return unusable("flowmc_update_sites: no memory for a copy of the field");
  int status = FLOWMC_OK;
  for (int pass = 0; pass < 2 && status == FLOWMC_OK; pass++) {
    int site[MOST_DIMENSIONS] = {0};
    for (double *next = field; next < field + stream->size;) {
      for (int mu = 0; mu < stream->directions; mu++, next += stream->element) {
        if (pass == 0)
          get(context, site, mu, next);
        else
          put(context, site, mu, next);
      }
      for (int i = 0; i < stream->dimensions && ++site[i] == stream->extents[i]; i++) site[i] = 0;
    }
    if (pass == 0) status = update(stream, field, 64, number);
  }
  free(field);
  return status;
}

int flowmc_value(flowmc_stream *stream, const char *name, double *value) {
  if (stream == NULL || name == NULL || value == NULL)
    return unusable("flowmc_value: stream, name or value is NULL");
  return status_of(flowmc_python_value(stream->key, name, value));
}

const char *flowmc_report(flowmc_stream *stream) {
  size_t length = 0;
  if (stream == NULL) {
    unusable("flowmc_report: stream is NULL");
    return NULL;
  }
  if (status_of(flowmc_python_report(stream->key, NULL, 0, &length)) != FLOWMC_OK) return NULL;
  char *text = realloc(stream->report, length + 1);
  if (text == NULL) {
    unusable("flowmc_report: no memory");
    return NULL;
  }
  stream->report = text;
  if (status_of(flowmc_python_report(stream->key, text, length + 1, &length)) != FLOWMC_OK)
    return NULL;
  return text;
}

void flowmc_close(flowmc_stream *stream) {
  if (stream == NULL) return;
  flowmc_python_close(stream->key);
  free(stream->report);
  free(stream);
}
