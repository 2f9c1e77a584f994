// Messages to TensorRT's logger, or to standard error where no logger was given.
#pragma once

#include <NvInferRuntime.h>

#include <string>

namespace ssm_export {

using Severity = nvinfer1::ILogger::Severity;

void set_logger_finder(nvinfer1::ILoggerFinder* finder);

void report(Severity severity, std::string const& message) noexcept;

}  // namespace ssm_export
