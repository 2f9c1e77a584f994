// Which engines of a bundle this machine can run, as ssm_export/engines/_trt_choice.py decides it.
#pragma once

#include <optional>
#include <string>
#include <utility>

#include "manifest.h"

namespace ssm_runner {

using Capability = std::pair<int, int>;

struct Machine {
    std::string kind;     // the runtime that this program is linked to
    std::string version;  // its version: 10.3.0.30
    std::string platform;
    std::optional<Capability> capability;  // of the first GPU; none where there is no GPU
};

// linux-x86_64 or linux-aarch64: what this program was compiled for.
std::string platform_here();

struct Choice {
    EngineEntry const* step = nullptr;
    EngineEntry const* prefill = nullptr;

    // One engine with a profile for each form: its scans are plugins, and states stay in place.
    bool unified() const { return step == prefill; }
};

// Why an engine cannot run here; empty where nothing known speaks against it.
std::string why_not_here(EngineEntry const& entry, Machine const& machine);

// The command that builds an engine again.
std::string rebuild(EngineEntry const& entry, std::string const& folder);

// The engines of both forms; of one target where its name is given. Throws Error: there is none of
// this kind, or what keeps the last one that was looked at from running.
Choice choose_engines(Manifest const& manifest, Machine const& machine, std::string const& target);

}  // namespace ssm_runner
