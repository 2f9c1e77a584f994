// One plugin creator per operator.
#pragma once

#include <NvInferRuntime.h>

#include <vector>

#include "operators.h"

namespace ssm_export {

class Creator final : public nvinfer1::IPluginCreatorV3One {
public:
    explicit Creator(Operator const& op);

    nvinfer1::IPluginV3* createPlugin(char const* name,
                                      nvinfer1::PluginFieldCollection const* fields,
                                      nvinfer1::TensorRTPhase phase) noexcept override;
    nvinfer1::PluginFieldCollection const* getFieldNames() noexcept override;
    char const* getPluginName() const noexcept override;
    char const* getPluginVersion() const noexcept override;
    char const* getPluginNamespace() const noexcept override;

private:
    Operator const& op_;
    std::vector<nvinfer1::PluginField> fields_;
    nvinfer1::PluginFieldCollection collection_{};
};

// Every creator, for the life of the process.
std::vector<nvinfer1::IPluginCreatorInterface*> const& creators();

}  // namespace ssm_export
