#include "choice.h"

#include <cstdio>

#include "error.h"

namespace ssm_runner {
namespace {

// 10.3.0 and 10.3.0.30 are one version: Python's package leaves the build out on a Jetson.
bool same_version(std::string const& one, std::string const& other) {
    std::string const& shorter = one.size() < other.size() ? one : other;
    std::string const& longer = one.size() < other.size() ? other : one;
    return !shorter.empty() && longer.compare(0, shorter.size(), shorter) == 0 &&
           (longer.size() == shorter.size() || longer[shorter.size()] == '.');
}

}  // namespace

std::string platform_here() {
#if defined(__aarch64__)
    return "linux-aarch64";
#else
    return "linux-x86_64";
#endif
}

std::string why_not_here(EngineEntry const& entry, Machine const& machine) {
    if (!same_version(entry.version, machine.version)) {
        return text("it was built with ", machine.kind, " ",
                    entry.version.empty() ? "of an unknown version" : entry.version, ", here is ",
                    machine.version);
    }
    if (entry.platform != machine.platform && entry.kind != "tensorrt-rtx") {
        return text("it was built on ", entry.platform, ", this is ", machine.platform);
    }
    if (!machine.capability) {
        return "";
    }
    int major = 0, minor = 0;
    if (std::sscanf(entry.capability.c_str(), "%d.%d", &major, &minor) != 2) {
        return text("its compute capability is '", entry.capability, "'");
    }
    Capability const needed{major, minor}, have = *machine.capability;
    bool const or_later = entry.capability.back() == '+';
    if (have == needed || (or_later && have >= needed)) {
        return "";
    }
    return text("it was built for compute capability ", entry.capability, ", this GPU has ",
                have.first, ".", have.second);
}

std::string rebuild(EngineEntry const& entry, std::string const& folder) {
    return text("ssm-export build ", folder, " --target ", entry.target, " --engine ", entry.kind,
                ", on this machine");
}

Choice choose_engines(Manifest const& manifest, Machine const& machine, std::string const& target) {
    Choice separate;
    EngineEntry const* unified = nullptr;
    EngineEntry const* misfit = nullptr;
    bool any = false;
    for (EngineEntry const& entry : manifest.engines) {
        if (entry.kind != machine.kind || (!target.empty() && entry.target != target)) {
            continue;
        }
        any = true;
        if (!why_not_here(entry, machine).empty()) {
            misfit = &entry;
            continue;
        }
        EngineEntry const** const place = entry.form == "unified" ? &unified
                                          : entry.form == "step"  ? &separate.step
                                                                  : &separate.prefill;
        // An engine for this very GPU is preferred over one for every GPU.
        if (*place == nullptr || entry.capability.find('+') == std::string::npos) {
            *place = &entry;
        }
    }
    if (unified != nullptr) {
        return {unified, unified};
    }
    if (separate.step != nullptr && separate.prefill != nullptr) {
        return separate;
    }
    if (misfit != nullptr) {
        throw Error(kEngineMismatch,
                    "this engine cannot run here: " + why_not_here(*misfit, machine),
                    misfit->file.path, rebuild(*misfit, manifest.folder));
    }
    std::string const wanted = text("of kind '", machine.kind, "'",
                                    target.empty() ? "" : " for the target '" + target + "'");
    throw Error(kNoEngine,
                any ? "the bundle has no engines of both forms " + wanted
                    : "the bundle has no engine " + wanted,
                manifest.folder,
                text("ssm-export build ", manifest.folder, " --engine ", machine.kind, " --target ",
                     target.empty() ? "TARGET" : target));
}

}  // namespace ssm_runner
