// Compares the kernels' exp with float64.
//
//   exponential_test [--every-float]    all 2^32 arguments (minutes) instead of a sample; SPARTA_ISA selects the
//                                       instruction set; exit code 77 if it is not available

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <vector>

#include "reference.h"
#include "sparta.h"
#include "testing.h"

namespace {

void test_exponential(bool every_float) {
  const uint64_t step = every_float ? 1 : 1009;
  constexpr size_t chunk = 4096;
  std::vector<float> x(chunk), y(chunk);
  double worst = 0, worst_subnormal = 0;
  for (uint64_t first = 0; first < (uint64_t{1} << 32); first += step * chunk) {
    for (size_t i = 0; i < chunk; ++i) {
      const uint32_t bits = static_cast<uint32_t>(first + i * step);
      std::memcpy(&x[i], &bits, 4);
    }
    sparta::exponential(x.data(), y.data(), chunk);
    for (size_t i = 0; i < chunk; ++i) {
      const double exact = std::exp(static_cast<double>(x[i]));
      if (std::isnan(x[i])) {
        CHECK(std::isnan(y[i]), "exp(NaN) is %g", static_cast<double>(y[i]));
      } else if (round_to(exact, Type::float32) == INFINITY || y[i] == INFINITY) {
        // Just below the largest float, an error of two units may overflow.
        CHECK(y[i] == INFINITY || y[i] > 3.4028e38f, "exp(%g) is %g", static_cast<double>(x[i]), static_cast<double>(y[i]));
        CHECK(exact > 3.4028e38, "exp(%g) is infinite", static_cast<double>(x[i]));
      } else {
        const double error = std::abs(static_cast<double>(y[i]) - exact) / ulp(exact, Type::float32);
        (exact < std::ldexp(1.0, -126) ? worst_subnormal : worst) = std::max(exact < std::ldexp(1.0, -126) ? worst_subnormal : worst, error);
      }
    }
  }
  std::printf("exp: %.3f units in the last place at most, %.3f where the result is subnormal (%s)\n", worst, worst_subnormal,
              sparta::instructions());
  CHECK(worst <= 2.5 && worst_subnormal <= 1.5, "exp is less accurate than sparta.h states");
  const float edges[] = {0.0f, -0.0f, INFINITY, -INFINITY};
  float results[4];
  sparta::exponential(edges, results, 4);
  CHECK(results[0] == 1 && results[1] == 1 && results[2] == INFINITY && results[3] == 0, "exp at 0 and the infinities");
}

}  // namespace

int main(int argc, char** argv) {
  return run_tests([&] { test_exponential(argc > 1 && std::strcmp(argv[1], "--every-float") == 0); });
}
