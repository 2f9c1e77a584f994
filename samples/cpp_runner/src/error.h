// The one exception of this program. It carries what ssm-export's own errors carry: a code, what is
// wrong, where, and what mends it.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>

namespace ssm_runner {

inline constexpr int kExitFailed = 1;
inline constexpr int kExitUsage = 2;
inline constexpr int kExitMachine = 3;

// The codes of ssm_export/errors.py that can happen here.
struct ErrorCode {
    char const* name;
    int exit_status = kExitFailed;
};

inline constexpr ErrorCode kNoSuchPath{"SSM-E103", kExitUsage};
inline constexpr ErrorCode kWrongUsage{"SSM-E107", kExitUsage};
inline constexpr ErrorCode kNotABundle{"SSM-E401"};
inline constexpr ErrorCode kNewerSchema{"SSM-E402"};
inline constexpr ErrorCode kHashMismatch{"SSM-E403"};
inline constexpr ErrorCode kMissingFile{"SSM-E404"};
inline constexpr ErrorCode kEngineMismatch{"SSM-E503"};
inline constexpr ErrorCode kNoEngine{"SSM-E504"};
inline constexpr ErrorCode kRunnerFailed{"SSM-E505"};
inline constexpr ErrorCode kPluginLibrary{"SSM-E507"};
inline constexpr ErrorCode kNoGpu{"SSM-E602", kExitMachine};
inline constexpr ErrorCode kWrongHeaders{"SSM-E604", kExitMachine};
inline constexpr ErrorCode kParityFailed{"SSM-E701"};

class Error : public std::runtime_error {
public:
    Error(ErrorCode code, std::string const& what, std::string const& where, std::string const& fix)
        : std::runtime_error(std::string(code.name) + "  " + (where.empty() ? "" : where + ": ") +
                             what + "." + (fix.empty() ? "" : " Fix: " + fix)),
          exit_status_(code.exit_status) {}
    int exit_status() const { return exit_status_; }

private:
    int exit_status_;
};

// The parts, one after the other.
template <typename... Parts>
std::string text(Parts const&... parts) {
    std::ostringstream out;
    (out << ... << parts);
    return out.str();
}

}  // namespace ssm_runner
