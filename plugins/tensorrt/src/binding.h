// Which input of a node is which port of a section, and whether the section takes the call at all.
#pragma once

#include <string>
#include <vector>

#include "container.h"
#include "tensors.h"

namespace ssm_export {

// The node's input of each of the section's inputs, in the section's order.
using Positions = std::vector<size_t>;

// Gives the positions for a call of which the types, the shapes or both are known.
//
// A node's inputs are the section's, one by one, or, where `schema` names an operator's inputs,
// those of the schema, with some left out. `strict`: a size that is not known yet does not fit one
// that the kernels fix. Throws Error: the first tensor that does not fit.
Positions bind(Section const& section, std::vector<std::string> const& schema,
               Tensors const& inputs, bool strict = false);

// The size of every symbol of a call whose shapes are known.
// Throws Error: a shape that does not fit, or a size of 0.
Sizes sizes_of(Section const& section, Positions const& positions, Tensors const& inputs);

// Throws Error where outputs have other types or shapes than the section gives them.
void check_outputs(Section const& section, Sizes const& sizes, Tensors const& outputs);

// The first `count` of a node's inputs and outputs have types that the section takes.
bool takes_types(Section const& section, std::vector<std::string> const& schema, size_t inputs,
                 Tensors const& first);

}  // namespace ssm_export
