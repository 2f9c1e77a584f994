// Messages: the one exception that this library throws, and text made of parts.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace ssm_export {

// What is wrong, for a person; caught where TensorRT calls in and written to its logger.
class Error : public std::runtime_error {
public:
    using std::runtime_error::runtime_error;
};

// The parts, one after the other.
template <typename... Parts>
std::string text(Parts const&... parts) {
    std::ostringstream out;
    (out << ... << parts);
    return out.str();
}

template <typename... Parts>
[[noreturn]] void fail(Parts const&... parts) {
    throw Error(text(parts...));
}

// Items with something between them; `show` gives the text of one.
template <typename Items, typename Show>
std::string joined(Items const& items, char const* between, Show show) {
    std::string out;
    for (auto const& item : items) {
        out += (out.empty() ? "" : between) + std::string(show(item));
    }
    return out;
}

}  // namespace ssm_export
