// Times as people ask for them.
#pragma once

#include <algorithm>
#include <chrono>
#include <cmath>
#include <vector>

namespace ssm_runner {

class Stopwatch {
public:
    // Milliseconds since it was made, or since it was asked last.
    double lap() {
        auto const now = std::chrono::steady_clock::now();
        double const out = std::chrono::duration<double, std::milli>(now - last_).count();
        last_ = now;
        return out;
    }

private:
    std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

// The value below which a share of the times lies, between neighbours in proportion: what numpy
// gives by default.
inline double quantile(std::vector<double> times, double share) {
    std::sort(times.begin(), times.end());
    double const place = share * static_cast<double>(times.size() - 1);
    auto const low = static_cast<size_t>(std::floor(place));
    size_t const high = std::min(low + 1, times.size() - 1);
    return times[low] + (place - static_cast<double>(low)) * (times[high] - times[low]);
}

}  // namespace ssm_runner
