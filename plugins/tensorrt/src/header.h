// The text of a section: operands, images and launch plan, one per line.
#pragma once

#include <string_view>

#include "container.h"

namespace ssm_export {

// Reads the lines into a section and checks that everything they refer to is there.
// Throws Error naming the line.
void read_header(std::string_view text, Section& section);

}  // namespace ssm_export
