#include "plugin.h"

#include <algorithm>
#include <exception>
#include <utility>

#include "fields.h"
#include "logger.h"
#include "text.h"

namespace ssm_export {

using nvinfer1::DataType;
using nvinfer1::DimsExprs;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::IPluginV3;
using nvinfer1::PluginTensorDesc;

Plugin::Plugin(Operator const& op, std::string name, Sections candidates)
    : op_(op), name_(std::move(name)), candidates_(std::move(candidates)) {
    configured_.resize(candidates_.size());
    metadata_ = text(op_.name, " by ssm_export ", candidates_.front()->made_by);
}

Plugin::Plugin(Plugin const& other)
    : IPluginV3(other), IPluginV3OneCore(other), IPluginV3OneBuild(other),
      IPluginV3OneRuntime(other), op_(other.op_), name_(other.name_), metadata_(other.metadata_),
      candidates_(other.candidates_), configured_(other.configured_) {}

void Plugin::log(
    std::string const& doing, std::string const& shapes, char const* what) const noexcept {
    try {
        report(Severity::kERROR, text("ssm_export ", op_.name, " '", name_, "' ", doing, " [",
                                      shapes, "]: ", what));
    } catch (...) {
        report(Severity::kERROR, what);
    }
}

// Runs `work`; an exception is logged with the op, what was being done and the shapes, and gives -1.
template <typename Shapes, typename Work>
int32_t Plugin::guarded(char const* doing, Shapes shapes, Work work) const noexcept {
    try {
        try {
            work();
            return 0;
        } catch (std::exception const& error) {
            log(doing, shapes(), error.what());
        }
    } catch (...) {
        report(Severity::kERROR, "ssm_export: an error could not be reported");
    }
    return -1;
}

// The first candidate that takes all these calls of the node, one made for any length before one
// for a single length; their reasons where none does.
Plugin::Choice Plugin::choose(std::vector<Tensors> const& calls) const {
    std::string reasons;
    for (bool const strict : {true, false}) {
        reasons.clear();
        for (size_t i = 0; i < candidates_.size(); ++i) {
            try {
                Choice found{i, {}};
                for (Tensors const& inputs : calls) {
                    found.positions = bind(*candidates_[i], op_.schema, inputs, strict);
                }
                return found;
            } catch (Error const& error) {
                reasons += text(i == 0 ? "" : "; ", error.what());
            }
        }
    }
    fail(reasons);
}

nvinfer1::IPluginCapability* Plugin::getCapabilityInterface(
    nvinfer1::PluginCapabilityType type) noexcept {
    switch (type) {
    case nvinfer1::PluginCapabilityType::kCORE:
        return static_cast<nvinfer1::IPluginV3OneCore*>(this);
    case nvinfer1::PluginCapabilityType::kBUILD:
        return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
    case nvinfer1::PluginCapabilityType::kRUNTIME:
        return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
    }
    return nullptr;
}

IPluginV3* Plugin::clone() noexcept {
    IPluginV3* made = nullptr;
    guarded("clone", [] { return std::string(); }, [&] { made = new Plugin(*this); });
    return made;
}

char const* Plugin::getPluginName() const noexcept { return op_.name; }
char const* Plugin::getPluginVersion() const noexcept { return kPluginVersion; }
char const* Plugin::getPluginNamespace() const noexcept { return op_.plugin_namespace; }
char const* Plugin::getMetadataString() noexcept { return metadata_.c_str(); }

int32_t Plugin::getNbOutputs() const noexcept {
    return static_cast<int32_t>(candidates_.front()->outputs.size());
}

int32_t Plugin::getOutputDataTypes(
    DataType* out, int32_t outputs, DataType const* in, int32_t inputs) const noexcept {
    return guarded(
        "output types", [&] { return show(tensors(in, inputs)); },
        [&] {
            Section const& section = *candidates_[choose({tensors(in, inputs)}).candidate];
            if (static_cast<size_t>(outputs) != section.outputs.size()) {
                fail("the node has ", outputs, " outputs, the kernels give ",
                     section.outputs.size());
            }
            for (size_t k = 0; k < section.outputs.size(); ++k) {
                out[k] = type_of(section.outputs[k].type);
            }
        });
}

int32_t Plugin::getOutputShapes(DimsExprs const* in, int32_t inputs, DimsExprs const*,
                                int32_t shape_input_count, DimsExprs* out, int32_t outputs,
                                nvinfer1::IExprBuilder& builder) noexcept {
    return guarded(
        "output shapes", [&] { return show(tensors(in, inputs)); },
        [&] {
            Choice const choice = choose({tensors(in, inputs)});
            Section const& section = *candidates_[choice.candidate];
            if (shape_input_count != 0) {
                fail("it has ", shape_input_count, " shape inputs, the kernels take none");
            }
            if (static_cast<size_t>(outputs) != section.outputs.size()) {
                fail("the node has ", outputs, " outputs, the kernels give ",
                     section.outputs.size());
            }
            std::vector<nvinfer1::IDimensionExpr const*> symbols(section.symbols.size());
            for (size_t k = section.inputs.size(); k-- > 0;) {
                Operand const& operand = section.inputs[k];
                for (size_t axis = 0; axis < operand.shape.size(); ++axis) {
                    if (operand.shape[axis].symbol >= 0) {
                        symbols[static_cast<size_t>(operand.shape[axis].symbol)] =
                            in[choice.positions[k]].d[axis];
                    }
                }
            }
            for (size_t k = 0; k < section.outputs.size(); ++k) {
                auto const& shape = section.outputs[k].shape;
                out[k].nbDims = static_cast<int32_t>(shape.size());
                for (size_t axis = 0; axis < shape.size(); ++axis) {
                    Dimension const& one = shape[axis];
                    out[k].d[axis] = one.symbol < 0 ? builder.constant(one.value)
                                                    : symbols[static_cast<size_t>(one.symbol)];
                }
            }
        });
}

bool Plugin::supportsFormatCombination(int32_t position, DynamicPluginTensorDesc const* in_out,
                                       int32_t inputs, int32_t) noexcept {
    bool supported = false;
    guarded("formats", [] { return std::string(); }, [&] {
        Tensors const first = tensors(in_out, position + 1);
        supported = in_out[position].desc.format == nvinfer1::TensorFormat::kLINEAR &&
                    std::any_of(candidates_.begin(), candidates_.end(), [&](auto const& one) {
                        return takes_types(*one, op_.schema, static_cast<size_t>(inputs), first);
                    });
    });
    return supported;
}

int32_t Plugin::configurePlugin(DynamicPluginTensorDesc const* in, int32_t inputs,
                                DynamicPluginTensorDesc const* out, int32_t outputs) noexcept {
    return guarded(
        "configuration", [&] { return show(tensors(in, inputs)); },
        [&] {
            Tensors const largest = tensors(in, inputs, &DynamicPluginTensorDesc::max);
            Tensors const smallest = tensors(in, inputs, &DynamicPluginTensorDesc::min);
            Choice const choice = choose({tensors(in, inputs), smallest, largest});
            auto const section = candidates_[choice.candidate];
            workspace_bytes(*section, sizes_of(*section, choice.positions, largest));
            Tensors const given = tensors(out, outputs);
            for (size_t k = 0; k < given.size(); ++k) {
                if (k >= section->outputs.size() || given[k].type != section->outputs[k].type) {
                    fail("output ", k, " is ", show(given[k]), ", the kernels give ",
                         k < section->outputs.size() ? section->show(section->outputs[k]) : "none");
                }
            }
            configured_[choice.candidate] = true;
        });
}

size_t Plugin::getWorkspaceSize(DynamicPluginTensorDesc const* in, int32_t inputs,
                                DynamicPluginTensorDesc const*, int32_t) const noexcept {
    size_t bytes = 0;
    guarded(
        "workspace", [&] { return show(tensors(in, inputs, &DynamicPluginTensorDesc::max)); },
        [&] {
            Tensors const largest = tensors(in, inputs, &DynamicPluginTensorDesc::max);
            Choice const choice = choose({largest});
            Section const& section = *candidates_[choice.candidate];
            bytes = workspace_bytes(section, sizes_of(section, choice.positions, largest));
        });
    return bytes;
}

IPluginV3* Plugin::attachToContext(nvinfer1::IPluginResourceContext*) noexcept {
    IPluginV3* attached = nullptr;
    guarded(
        "loading",
        [&] {
            Section const& section = *candidates_.front();
            return joined(section.inputs, ", ", [&](auto const& one) { return section.show(one); });
        },
        [&] {
            auto made = std::make_unique<Plugin>(*this);
            for (auto const& section : candidates_) {
                made->kernels_.push_back(load_kernels(section));
                made->persistent_.push_back(std::make_unique<PersistentMemory const>(*section));
            }
            attached = made.release();
        });
    return attached;
}

void Plugin::bind_shapes(PluginTensorDesc const* in, int32_t inputs, PluginTensorDesc const* out,
                         int32_t outputs) {
    bound_.reset();
    Tensors const given = tensors(in, inputs);
    Choice const choice = choose({given});
    Section const& section = *candidates_[choice.candidate];
    Sizes const sizes = sizes_of(section, choice.positions, given);
    check_outputs(section, sizes, tensors(out, outputs));
    if (kernels_.empty()) {
        return;  // only checked: a plugin of the build phase
    }
    std::vector<nvinfer1::Dims> shapes;
    for (int32_t i = 0; i < inputs; ++i) {
        shapes.push_back(in[i].dims);
    }
    bound_.emplace(Bound{std::move(shapes), outputs,
                         LaunchPlan(section, *kernels_[choice.candidate],
                                    *persistent_[choice.candidate], sizes, choice.positions)});
}

bool Plugin::is_bound(PluginTensorDesc const* in) const {
    for (size_t i = 0; i < bound_->shapes.size(); ++i) {
        nvinfer1::Dims const& a = bound_->shapes[i];
        nvinfer1::Dims const& b = in[i].dims;
        if (a.nbDims != b.nbDims || !std::equal(a.d, a.d + std::max(a.nbDims, 0), b.d)) {
            return false;
        }
    }
    return true;
}

int32_t Plugin::onShapeChange(PluginTensorDesc const* in, int32_t inputs,
                              PluginTensorDesc const* out, int32_t outputs) noexcept {
    return guarded("shapes", [&] { return show(tensors(in, inputs)); },
                   [&] { bind_shapes(in, inputs, out, outputs); });
}

int32_t Plugin::enqueue(PluginTensorDesc const* in, PluginTensorDesc const* out,
                        void const* const* inputs, void* const* outputs, void* workspace,
                        cudaStream_t stream) noexcept {
    auto const shapes = [&] {
        return bound_ ? show(tensors(in, static_cast<int32_t>(bound_->shapes.size())))
                      : std::string("shapes not known");
    };
    return guarded("enqueue", shapes, [&] {
        if (kernels_.empty()) {
            fail("the plugin is not attached to an execution context");
        }
        if (!bound_) {
            fail("no shapes that the kernels take were given before");
        }
        if (!is_bound(in)) {
            bind_shapes(in, static_cast<int32_t>(bound_->shapes.size()), out, bound_->outputs);
        }
        bound_->plan.launch(inputs, outputs, workspace, stream);
    });
}

nvinfer1::PluginFieldCollection const* Plugin::getFieldsToSerialize() noexcept {
    int32_t const failed = guarded("serialization", [] { return std::string(); }, [&] {
        serialized_.clear();
        bool const all = std::find(configured_.begin(), configured_.end(), true) ==
                         configured_.end();
        for (size_t i = 0; i < candidates_.size(); ++i) {
            if (all || configured_[i]) {
                serialized_ += candidates_[i]->bytes;
            }
        }
        fields_ = {
            {kEngineFormatField, &kEngineFormat, nvinfer1::PluginFieldType::kINT32, 1},
            {kKernelsField, serialized_.data(), nvinfer1::PluginFieldType::kCHAR,
             static_cast<int32_t>(serialized_.size())},
        };
        collection_ = {static_cast<int32_t>(fields_.size()), fields_.data()};
    });
    return failed == 0 ? &collection_ : nullptr;
}

}  // namespace ssm_export
