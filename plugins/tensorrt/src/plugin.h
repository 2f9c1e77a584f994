// The one plugin class: it knows of an operator what the sections say, and nothing else.
#pragma once

#include <NvInferRuntime.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "binding.h"
#include "container.h"
#include "launch_plan.h"
#include "module_cache.h"
#include "operators.h"
#include "persistent.h"

namespace ssm_export {

class Plugin final : public nvinfer1::IPluginV3,
                     public nvinfer1::IPluginV3OneCore,
                     public nvinfer1::IPluginV3OneBuild,
                     public nvinfer1::IPluginV3OneRuntime {
public:
    // `candidates` are the sections that fit the node's attributes; types and shapes choose.
    Plugin(Operator const& op, std::string name, Sections candidates);

    // A copy is configured like the original, but not attached to a context.
    Plugin(Plugin const& other);
    Plugin& operator=(Plugin const&) = delete;

    // IPluginV3
    nvinfer1::IPluginCapability* getCapabilityInterface(
        nvinfer1::PluginCapabilityType type) noexcept override;
    nvinfer1::IPluginV3* clone() noexcept override;

    // IPluginV3OneCore
    char const* getPluginName() const noexcept override;
    char const* getPluginVersion() const noexcept override;
    char const* getPluginNamespace() const noexcept override;

    // IPluginV3OneBuild
    int32_t configurePlugin(nvinfer1::DynamicPluginTensorDesc const* in, int32_t inputs,
                            nvinfer1::DynamicPluginTensorDesc const* out,
                            int32_t outputs) noexcept override;
    int32_t getOutputDataTypes(nvinfer1::DataType* out, int32_t outputs,
                               nvinfer1::DataType const* in,
                               int32_t inputs) const noexcept override;
    int32_t getOutputShapes(nvinfer1::DimsExprs const* in, int32_t inputs,
                            nvinfer1::DimsExprs const* shape_inputs, int32_t shape_input_count,
                            nvinfer1::DimsExprs* out, int32_t outputs,
                            nvinfer1::IExprBuilder& builder) noexcept override;
    bool supportsFormatCombination(int32_t position,
                                   nvinfer1::DynamicPluginTensorDesc const* in_out, int32_t inputs,
                                   int32_t outputs) noexcept override;
    int32_t getNbOutputs() const noexcept override;
    size_t getWorkspaceSize(nvinfer1::DynamicPluginTensorDesc const* in, int32_t inputs,
                            nvinfer1::DynamicPluginTensorDesc const* out,
                            int32_t outputs) const noexcept override;
    char const* getMetadataString() noexcept override;

    // IPluginV3OneRuntime
    int32_t onShapeChange(nvinfer1::PluginTensorDesc const* in, int32_t inputs,
                          nvinfer1::PluginTensorDesc const* out,
                          int32_t outputs) noexcept override;
    int32_t enqueue(nvinfer1::PluginTensorDesc const* in, nvinfer1::PluginTensorDesc const* out,
                    void const* const* inputs, void* const* outputs, void* workspace,
                    cudaStream_t stream) noexcept override;
    nvinfer1::IPluginV3* attachToContext(
        nvinfer1::IPluginResourceContext* context) noexcept override;
    nvinfer1::PluginFieldCollection const* getFieldsToSerialize() noexcept override;

private:
    // A section that takes a call, and where its inputs are among the node's.
    struct Choice {
        size_t candidate;
        Positions positions;
    };
    // What is worked out for the shapes at hand.
    struct Bound {
        std::vector<nvinfer1::Dims> shapes;
        int32_t outputs = 0;
        LaunchPlan plan;
    };

    Choice choose(std::vector<Tensors> const& calls) const;
    void bind_shapes(nvinfer1::PluginTensorDesc const* in, int32_t inputs,
                     nvinfer1::PluginTensorDesc const* out, int32_t outputs);
    bool is_bound(nvinfer1::PluginTensorDesc const* in) const;
    void log(std::string const& doing, std::string const& shapes, char const* what) const noexcept;

    template <typename Shapes, typename Work>
    int32_t guarded(char const* doing, Shapes shapes, Work work) const noexcept;

    Operator const& op_;
    std::string name_;
    std::string metadata_;
    Sections candidates_;
    std::vector<bool> configured_;  // the candidates that a profile needs

    std::vector<std::shared_ptr<LoadedKernels const>> kernels_;  // of the candidates, if attached
    std::vector<std::unique_ptr<PersistentMemory const>> persistent_;  // likewise
    std::optional<Bound> bound_;

    std::string serialized_;
    std::vector<nvinfer1::PluginField> fields_;
    nvinfer1::PluginFieldCollection collection_{};
};

}  // namespace ssm_export
