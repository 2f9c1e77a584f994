#include "launch_plan.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "text.h"

namespace ssm_export {
namespace {

constexpr int64_t kMaxGrid[] = {0x7fffffff, 65535, 65535};
constexpr size_t kWorkspaceAlignment = 256;
constexpr size_t kAlignment = 16;  // what the kernels were compiled for

// Where each workspace begins, and last the bytes of all.
std::vector<size_t> workspace_offsets(Section const& section, Sizes const& sizes) {
    std::vector<size_t> offsets{0};
    for (Workspace const& one : section.workspaces) {
        int64_t const bytes = one.bytes.value(sizes);
        if (bytes < 0 || bytes > (int64_t{1} << 48)) {
            fail("workspace '", one.name, "' would be ", bytes, " bytes");
        }
        size_t const aligned = (static_cast<size_t>(bytes) + kWorkspaceAlignment - 1) /
                               kWorkspaceAlignment * kWorkspaceAlignment;
        offsets.push_back(offsets.back() + aligned);
    }
    return offsets;
}

std::string show_sizes(Section const& section, Sizes const& sizes) {
    std::string out;
    for (size_t i = 0; i < sizes.size(); ++i) {
        out += text(i == 0 ? "" : ", ", section.symbols[i], " = ", sizes[i]);
    }
    return out;
}

std::string entry_of(Section const& section, int image) {
    auto const found = std::find_if(section.images.begin(), section.images.end(),
                                    [&](Image const& one) { return one.index == image; });
    return found->entry;
}

}  // namespace

size_t workspace_bytes(Section const& section, Sizes const& sizes) {
    return workspace_offsets(section, sizes).back();
}

LaunchPlan::LaunchPlan(Section const& section, LoadedKernels const& kernels,
                       PersistentMemory const& persistent, Sizes const& sizes,
                       Positions const& positions)
    : section_(section) {
    auto const chosen = std::find_if(section.cases.begin(), section.cases.end(),
                                     [&](Case const& one) { return one.when.value(sizes) != 0; });
    if (chosen == section.cases.end()) {
        fail("the kernels have no case for ", show_sizes(section, sizes));
    }
    auto const offsets = workspace_offsets(section, sizes);
    size_t parameters = 0;
    for (Launch const& launch : chosen->launches) {
        Kernel made{kernels.function(launch.image), entry_of(section, launch.image), {},
                    sources_.size(), launch.arguments.size(), parameters};
        bool empty = false;
        for (size_t axis = 0; axis < 3; ++axis) {
            int64_t const blocks = launch.grid[axis].value(sizes);
            if (blocks < 0 || blocks > kMaxGrid[axis]) {
                fail("kernel '", made.name, "' would need ", blocks, " blocks along ",
                     "xyz"[axis], " for ", show_sizes(section, sizes), ", CUDA has at most ",
                     kMaxGrid[axis]);
            }
            made.grid[axis] = static_cast<unsigned>(blocks);
            empty = empty || blocks == 0;
        }
        if (empty) {
            continue;
        }
        for (Argument const& argument : launch.arguments) {
            auto const index = static_cast<size_t>(argument.index);
            Source source{argument.kind, index, index};
            uint64_t value = 0;
            if (argument.kind == Argument::Kind::kInput) {
                source.index = positions.at(index);
            } else if (argument.kind == Argument::Kind::kWorkspace) {
                source.index = offsets.at(index);
            } else if (argument.kind == Argument::Kind::kPersistent) {
                value = persistent.address(index);
            } else if (argument.kind == Argument::Kind::kInteger) {
                int64_t const integer = argument.value.value(sizes);
                if (integer < std::numeric_limits<int32_t>::min() ||
                    integer > std::numeric_limits<int32_t>::max()) {
                    fail("kernel '", made.name, "': the argument '", argument.value.source(),
                         "' would be ", integer, " for ", show_sizes(section, sizes),
                         ", which does not fit 32 bits");
                }
                auto const narrow = static_cast<int32_t>(integer);
                std::memcpy(&value, &narrow, sizeof narrow);
            }
            sources_.push_back(source);
            values_.push_back(value);
        }
        parameters += made.count + static_cast<size_t>(made.function.extra_pointers);
        kernels_.push_back(made);
    }
    values_.push_back(0);
    parameters_.reserve(parameters);
    for (Kernel const& kernel : kernels_) {
        for (size_t i = 0; i < kernel.count; ++i) {
            parameters_.push_back(&values_[kernel.first + i]);
        }
        for (int i = 0; i < kernel.function.extra_pointers; ++i) {
            parameters_.push_back(&values_.back());
        }
    }
}

void const* LaunchPlan::address(Source const& source, void const* const* inputs,
                                void* const* outputs, char const* workspace) const {
    if (source.kind == Argument::Kind::kWorkspace) {
        if (workspace == nullptr) {
            fail("there is no workspace");
        }
        return workspace + source.index;
    }
    bool const input = source.kind == Argument::Kind::kInput;
    Operand const& operand = (input ? section_.inputs : section_.outputs)[source.operand];
    void const* const found = input ? inputs[source.index] : outputs[source.index];
    bool const empty = std::any_of(operand.shape.begin(), operand.shape.end(),
                                   [](Dimension const& d) { return d.symbol < 0 && d.value == 0; });
    if (found == nullptr && !empty) {
        fail(input ? "input '" : "output '", operand.port, "' has no address");
    }
    if (reinterpret_cast<uintptr_t>(found) % kAlignment != 0) {
        fail(input ? "input '" : "output '", operand.port, "' at ", found,
             " does not begin at a multiple of ", kAlignment, " bytes");
    }
    return found;
}

void LaunchPlan::launch(void const* const* inputs, void* const* outputs, void* workspace,
                        CudaStream stream) {
    Driver const& cuda = driver();
    for (size_t i = 0; i < sources_.size(); ++i) {
        if (sources_[i].kind != Argument::Kind::kInteger &&
            sources_[i].kind != Argument::Kind::kPersistent) {
            values_[i] = reinterpret_cast<uint64_t>(
                address(sources_[i], inputs, outputs, static_cast<char const*>(workspace)));
        }
    }
    for (Kernel const& kernel : kernels_) {
        CudaResult const result = cuda.launch(
            kernel.function.handle, kernel.grid[0], kernel.grid[1], kernel.grid[2],
            kernel.function.threads, 1, 1, kernel.function.shared_memory, stream,
            parameters_.data() + kernel.first_parameter, nullptr);
        if (result != 0) {
            cuda.check(result, text("kernel '", kernel.name, "' on a grid of (", kernel.grid[0],
                                    ", ", kernel.grid[1], ", ", kernel.grid[2], ")"));
        }
    }
}

}  // namespace ssm_export
