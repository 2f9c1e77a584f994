// Compiled kernels and their launch plans as bytes: what the node attribute `kernels` holds.
//
// One or more sections, each made for one call of an operator. The docstring of container.py, two
// folders up, describes the bytes.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "expression.h"

namespace ssm_export {

// A size that the kernels fix, or the index of the symbol that stands for one.
struct Dimension {
    int64_t value = 0;
    int symbol = -1;
};

// An input or output: its port, its ONNX type name and its shape.
struct Operand {
    std::string port;
    std::string type;
    std::vector<Dimension> shape;
};

struct Attribute {
    std::string name;
    std::string kind;  // int, float or string
    std::string value;
};

struct Workspace {
    std::string name;
    Expression bytes;
};

// A buffer that is zero before the first launch of an execution context, and then keeps its values.
struct Persistent {
    std::string name;
    size_t bytes = 0;
};

// One kernel for one chip.
struct Image {
    int index = 0;
    std::string entry;
    bool ptx = false;
    int capability = 0;  // 87 for 8.7
    size_t offset = 0;
    size_t bytes = 0;
    int shared_memory = 0;
    int threads = 0;
    int registers = 0;
    int extra_pointers = 0;  // null pointers after the arguments
};

struct Argument {
    enum class Kind { kInput, kOutput, kWorkspace, kPersistent, kInteger };
    Kind kind = Kind::kInteger;
    int index = 0;  // of the input, output or buffer
    Expression value;
};

struct Launch {
    int image = 0;
    Expression grid[3];
    std::vector<Argument> arguments;
};

struct Case {
    Expression when;
    std::vector<Launch> launches;
};

// What computes one call: its shapes and types, the kernels and how they are launched.
struct Section {
    std::string op;
    int op_version = 0;
    std::string made_by;
    std::vector<Attribute> attributes;
    std::vector<Operand> inputs;
    std::vector<Operand> outputs;
    std::vector<std::string> symbols;
    std::vector<Workspace> workspaces;
    std::vector<Persistent> persistents;
    std::vector<Image> images;
    std::vector<Case> cases;

    std::string bytes;  // the whole section, to be serialized again
    uint64_t hash = 0;  // of `bytes`

    // The images back to back. Throws Error where they are damaged.
    std::string image_bytes() const;

    // "x (B, T, 1536) float16"
    std::string show(Operand const& operand) const;

    Attribute const* attribute(std::string_view name) const;

    // Where the compressed images are in `bytes`, and what they must become.
    size_t compressed_at = 0;
    size_t raw_size = 0;
    uint32_t checksum = 0;
};

using Sections = std::vector<std::shared_ptr<Section const>>;

// Reads every section, images checked, from the bytes or their base64 text; zeros at the end are not
// read. Equal sections in use are shared. `where` names the bytes in messages. Throws Error: truncated, corrupt, or made for another version of this library.
Sections read_sections(std::string_view bytes, std::string const& where);

// What a section is written with. A change that older libraries cannot read changes it.
inline constexpr char kMagic[] = "SSMKRN01";

}  // namespace ssm_export
