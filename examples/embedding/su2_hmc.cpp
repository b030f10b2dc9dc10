// A C++ program with a heat bath of its own, two-dimensional SU(2), that mixes its sweeps with
// flowmc's trajectories.  Its links are quaternions, even sites first: a layout that flowmc does not
// know, so that it gets and puts them link by link.
//
//   usage: su2_hmc CONFIGURATION [UPDATES]

#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "flowmc.h"

namespace {

constexpr int L = 8;
constexpr double beta = 2.5;

// a0 + i (a1 s1 + a2 s2 + a3 s3) with the Pauli matrices s
using Quaternion = std::array<double, 4>;

Quaternion operator*(const Quaternion &a, const Quaternion &b) {
  return {a[0] * b[0] - a[1] * b[1] - a[2] * b[2] - a[3] * b[3],
          a[0] * b[1] + a[1] * b[0] - a[2] * b[3] + a[3] * b[2],
          a[0] * b[2] + a[2] * b[0] - a[3] * b[1] + a[1] * b[3],
          a[0] * b[3] + a[3] * b[0] - a[1] * b[2] + a[2] * b[1]};
}
Quaternion dagger(const Quaternion &a) { return {a[0], -a[1], -a[2], -a[3]}; }

class Field {
 public:
  Field() : links(2 * L * L, Quaternion{1, 0, 0, 0}) {}

  Quaternion &at(int x, int y, int mu) {
    x = (x + L) % L, y = (y + L) % L;
    const int half = (y * L + x) / 2, odd = (x + y) % 2;
    return links[static_cast<std::size_t>(2 * (odd * L * L / 2 + half) + mu)];
  }

  double plaquette() {
    double sum = 0;
    for (int y = 0; y < L; y++)
      for (int x = 0; x < L; x++)
        sum += (at(x, y, 0) * at(x + 1, y, 1) * dagger(at(x, y + 1, 0)) * dagger(at(x, y, 1)))[0];
    return sum / (L * L);
  }

  // Sum of the two staples, so that the plaquettes of the link U are tr(U * staples) / 2.
  Quaternion staples(int x, int y, int mu) {
    const int dx = mu == 0, dy = mu == 1, nu = 1 - mu, ex = nu == 0, ey = nu == 1;
    const Quaternion up = at(x + dx, y + dy, nu) * dagger(at(x + ex, y + ey, mu)) *
                          dagger(at(x, y, nu));
    const Quaternion down = dagger(at(x + dx - ex, y + dy - ey, nu)) *
                            dagger(at(x - ex, y - ey, mu)) * at(x - ex, y - ey, nu);
    return {up[0] + down[0], up[1] + down[1], up[2] + down[2], up[3] + down[3]};
  }

 private:
  std::vector<Quaternion> links;
};

// One sweep of Kennedy and Pendleton's heat bath.
void heat_bath(Field &field, std::mt19937_64 &random) {
  std::uniform_real_distribution<double> uniform(0, 1);
  std::normal_distribution<double> normal;
  for (int mu = 0; mu < 2; mu++)
    for (int y = 0; y < L; y++)
      for (int x = 0; x < L; x++) {
        Quaternion v = field.staples(x, y, mu);
        const double k = std::sqrt(v[0] * v[0] + v[1] * v[1] + v[2] * v[2] + v[3] * v[3]);
        for (double &one : v) one /= k;
        double a0;
        do {
          const double c = std::cos(2 * std::acos(-1.0) * uniform(random));
          const double delta = -(std::log(1 - uniform(random)) +
                                 c * c * std::log(1 - uniform(random))) / (beta * k);
          a0 = 1 - delta;
          const double r = uniform(random);
          if (r * r <= 1 - delta / 2) break;
        } while (true);
        Quaternion a{a0, normal(random), normal(random), normal(random)};
        const double scale =
            std::sqrt((1 - a0 * a0) / (a[1] * a[1] + a[2] * a[2] + a[3] * a[3]));
        for (int i = 1; i < 4; i++) a[static_cast<std::size_t>(i)] *= scale;
        field.at(x, y, mu) = a * dagger(v);
      }
}

// The layout of the host, in two functions: a link as [[a0 + i a3, a2 + i a1], [-a2 + i a1, ...]].
void get(void *context, const int *site, int mu, double *element) {
  const Quaternion &a = static_cast<Field *>(context)->at(site[0], site[1], mu);
  const double matrix[8] = {a[0], a[3], a[2], a[1], -a[2], a[1], a[0], -a[3]};
  for (int i = 0; i < 8; i++) element[i] = matrix[i];
}
void put(void *context, const int *site, int mu, const double *element) {
  static_cast<Field *>(context)->at(site[0], site[1], mu) = {element[0], element[3], element[2],
                                                             element[1]};
}

// Streams close themselves, errors are exceptions.
class Stream {
 public:
  explicit Stream(const std::string &configuration) {
    check(flowmc_open(&stream, configuration.c_str(), nullptr));
  }
  ~Stream() { flowmc_close(stream); }
  Stream(const Stream &) = delete;
  Stream &operator=(const Stream &) = delete;

  void update(Field &field, std::uint64_t number) {
    check(flowmc_update_sites(stream, get, put, &field, number));
  }
  double value(const char *name) {
    double found = 0;
    check(flowmc_value(stream, name, &found));
    return found;
  }

 private:
  static void check(int status) {
    if (status != FLOWMC_OK) throw std::runtime_error(flowmc_error());
  }
  flowmc_stream *stream = nullptr;
};

}  // namespace

int main(int count, char **words) {
  if (count < 2) {
    std::fprintf(stderr, "usage: su2_hmc CONFIGURATION [UPDATES]\n");
    return 2;
  }
  const int updates = count > 2 ? std::atoi(words[2]) : 1000;
  try {
    Stream stream(words[1]);
    Field field;
    std::mt19937_64 random(1);
    double sum = 0, squares = 0, accepted = 0;
    const int discarded = updates / 10;
    for (int i = 1; i <= discarded + updates; i++) {
      heat_bath(field, random);
      stream.update(field, static_cast<std::uint64_t>(i));
      if (i <= discarded) continue;
      const double value = field.plaquette();
      sum += value, squares += value * value;
      accepted += stream.value("hmc.acceptance");
    }
    const double mean = sum / updates;
    std::printf("plaquette %.5f, error of independent fields %.5f\n", mean,
                std::sqrt((squares / updates - mean * mean) / updates));
    std::printf("accepted: %.0f %% of flowmc's trajectories\n", 100 * accepted / updates);
  } catch (const std::exception &error) {
    std::fprintf(stderr, "su2_hmc: %s\n", error.what());
    return 1;
  }
  return 0;
}
