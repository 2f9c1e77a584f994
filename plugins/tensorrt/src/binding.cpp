#include "binding.h"

#include <algorithm>
#include <numeric>
#include <optional>

#include "text.h"

namespace ssm_export {
namespace {

// Where each of the section's inputs is among `count` inputs of a node, if it can be there at all.
std::optional<Positions> layout(
    Section const& section, std::vector<std::string> const& schema, size_t count) {
    Positions positions(section.inputs.size());
    std::iota(positions.begin(), positions.end(), size_t{0});
    if (count == positions.size()) {
        return positions;
    }
    for (size_t k = 0; k < positions.size(); ++k) {
        auto const at = std::find(schema.begin(), schema.end(), section.inputs[k].port);
        positions[k] = static_cast<size_t>(at - schema.begin());
        if (at == schema.end() || positions[k] >= count) {
            return std::nullopt;
        }
    }
    return count <= schema.size() ? std::optional(positions) : std::nullopt;
}

void check_input(
    Section const& section, Operand const& operand, Tensor const& tensor, bool strict) {
    auto const refuse = [&](auto const&... why) {
        fail("input '", operand.port, "' is ", show(tensor), ", the kernels take ",
             section.show(operand), why...);
    };
    if (!tensor.type.empty() && tensor.type != operand.type) {
        refuse();
    }
    if (!tensor.shaped) {
        return;
    }
    if (tensor.left_out()) {
        fail("input '", operand.port, "' is left out, the kernels take ", section.show(operand));
    }
    if (tensor.shape.size() != operand.shape.size()) {
        refuse();
    }
    for (size_t axis = 0; axis < tensor.shape.size(); ++axis) {
        Dimension const& dimension = operand.shape[axis];
        int64_t const size = tensor.shape[axis];
        if (dimension.symbol < 0 && (strict || size >= 0) && size != dimension.value) {
            refuse();
        }
        if (dimension.symbol >= 0 && size == 0) {
            refuse(": ", section.symbols[static_cast<size_t>(dimension.symbol)],
                   " is 0, it must be at least 1");
        }
    }
}

}  // namespace

Positions bind(Section const& section, std::vector<std::string> const& schema,
               Tensors const& inputs, bool strict) {
    auto const positions = layout(section, schema, inputs.size());
    if (!positions) {
        fail("the node has ", inputs.size(), " inputs (", show(inputs), "), the kernels take ",
             section.inputs.size(), ": ",
             joined(section.inputs, ", ", [&](Operand const& one) { return section.show(one); }));
    }
    for (size_t k = 0; k < positions->size(); ++k) {
        check_input(section, section.inputs[k], inputs[(*positions)[k]], strict);
    }
    for (size_t i = 0; i < inputs.size(); ++i) {
        bool const used = std::find(positions->begin(), positions->end(), i) != positions->end();
        if (!used && inputs[i].shaped && !inputs[i].left_out()) {
            fail("input ", i, " is ", show(inputs[i]), ", the kernels were made without it");
        }
    }
    return *positions;
}

Sizes sizes_of(Section const& section, Positions const& positions, Tensors const& inputs) {
    Sizes sizes(section.symbols.size(), -1);
    for (size_t k = 0; k < positions.size(); ++k) {
        Operand const& operand = section.inputs[k];
        Tensor const& tensor = inputs[positions[k]];
        for (size_t axis = 0; axis < operand.shape.size(); ++axis) {
            if (operand.shape[axis].symbol < 0) {
                continue;
            }
            auto const symbol = static_cast<size_t>(operand.shape[axis].symbol);
            int64_t const size = tensor.shape.at(axis);
            if (size < 1) {
                fail("input '", operand.port, "' is ", show(tensor), ": ",
                     section.symbols[symbol], " is ", size < 0 ? "not known" : "0");
            }
            if (sizes[symbol] >= 0 && sizes[symbol] != size) {
                fail("input '", operand.port, "' is ", show(tensor), ", but ",
                     section.symbols[symbol], " is ", sizes[symbol], " in the inputs before it");
            }
            sizes[symbol] = size;
        }
    }
    return sizes;
}

void check_outputs(Section const& section, Sizes const& sizes, Tensors const& outputs) {
    if (outputs.size() != section.outputs.size()) {
        fail("the node has ", outputs.size(), " outputs, the kernels give ",
             section.outputs.size());
    }
    for (size_t k = 0; k < outputs.size(); ++k) {
        Operand const& operand = section.outputs[k];
        Tensor expected{operand.type, true, {}};
        for (Dimension const& one : operand.shape) {
            expected.shape.push_back(
                one.symbol < 0 ? one.value : sizes[static_cast<size_t>(one.symbol)]);
        }
        if (outputs[k].type != expected.type || outputs[k].shape != expected.shape) {
            fail("output '", operand.port, "' is ", show(outputs[k]), ", the kernels give ",
                 show(expected));
        }
    }
}

bool takes_types(Section const& section, std::vector<std::string> const& schema, size_t inputs,
                 Tensors const& first) {
    auto const positions = layout(section, schema, inputs);
    if (!positions || first.size() > inputs + section.outputs.size()) {
        return false;
    }
    for (size_t i = 0; i < first.size(); ++i) {
        Operand const* operand = i < inputs ? nullptr : &section.outputs[i - inputs];
        auto const at = std::find(positions->begin(), positions->end(), i);
        if (at != positions->end()) {
            operand = &section.inputs[static_cast<size_t>(at - positions->begin())];
        }
        if (operand != nullptr && operand->type != first[i].type) {
            return false;
        }
    }
    return true;
}

}  // namespace ssm_export
