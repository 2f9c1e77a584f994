#include "base64.h"

#include <cstdint>

#include "text.h"

namespace ssm_export {
namespace {

int digit(char c) {
    if (c >= 'A' && c <= 'Z') {
        return c - 'A';
    }
    if (c >= 'a' && c <= 'z') {
        return c - 'a' + 26;
    }
    if (c >= '0' && c <= '9') {
        return c - '0' + 52;
    }
    return c == '+' ? 62 : c == '/' ? 63 : -1;
}

}  // namespace

std::string from_base64(std::string_view text) {
    if (text.size() % 4 != 0) {
        fail("their base64 text is truncated: ", text.size(), " characters, not a multiple of 4");
    }
    size_t padding = 0;
    while (padding < 2 && padding < text.size() && text[text.size() - 1 - padding] == '=') {
        ++padding;
    }
    std::string out;
    out.reserve(text.size() / 4 * 3);
    uint32_t group = 0;
    for (size_t i = 0; i < text.size(); ++i) {
        bool const padded = i >= text.size() - padding;
        int const value = padded ? 0 : digit(text[i]);
        if (value < 0) {
            fail("character ", i, " of their text is no base64");
        }
        group = (group << 6) | static_cast<uint32_t>(value);
        if (i % 4 == 3) {
            out.push_back(static_cast<char>(group >> 16));
            out.push_back(static_cast<char>(group >> 8));
            out.push_back(static_cast<char>(group));
            group = 0;
        }
    }
    out.resize(out.size() - padding);
    return out;
}

}  // namespace ssm_export
