// The operators that this library has plugins for.
#pragma once

#include <string>
#include <vector>

namespace ssm_export {

inline constexpr char kPluginVersion[] = "1";

struct Operator {
    char const* name;
    char const* plugin_namespace;
    std::vector<int> versions;             // operator versions that a section may be made for
    std::vector<char const*> attributes;   // what a parser shall pass of a node
    std::vector<std::string> schema;       // input names where a parser passes gaps; else empty
};

// Every operator, ours first.
std::vector<Operator> const& operators();

}  // namespace ssm_export
