// Bytes that travel as text: an ONNX string attribute is meant to be UTF-8.
#pragma once

#include <string>
#include <string_view>

namespace ssm_export {

// The bytes of base64 text, padded to whole groups of four. Throws Error: it is no base64.
std::string from_base64(std::string_view text);

}  // namespace ssm_export
