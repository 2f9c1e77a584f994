// Kernels from a file, for nodes that carry none: those of other exporters.
#pragma once

#include <string>

#include "container.h"

namespace ssm_export {

// Where the file is looked for: SSM_EXPORT_KERNELS, else kernels.ssmk beside this library.
std::string pack_path();

// The sections of the file; none where there is no file.
// Throws Error: it cannot be read.
Sections read_pack(std::string const& path);

}  // namespace ssm_export
