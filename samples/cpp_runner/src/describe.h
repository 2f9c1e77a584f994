// What --dry-run prints.
#pragma once

#include <string>

#include "choice.h"
#include "manifest.h"

namespace ssm_runner {

// Engines, states and the buffers that would be bound, for a batch of so many rows.
std::string describe(Manifest const& manifest, Choice const& choice, int64_t rows);

}  // namespace ssm_runner
