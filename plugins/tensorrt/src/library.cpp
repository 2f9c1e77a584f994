// What TensorRT looks for in a plugin library.
#include <NvInferRuntime.h>

#include "creators.h"
#include "logger.h"

static_assert(NV_TENSORRT_MAJOR * 100 + NV_TENSORRT_MINOR >= 1003,
              "the headers are older than TensorRT 10.3");

extern "C" {

__attribute__((visibility("default"))) nvinfer1::IPluginCreatorInterface* const* getCreators(
    int32_t& count) {
    auto const& all = ssm_export::creators();
    count = static_cast<int32_t>(all.size());
    return all.data();
}

__attribute__((visibility("default"))) void setLoggerFinder(nvinfer1::ILoggerFinder* finder) {
    ssm_export::set_logger_finder(finder);
}
}
