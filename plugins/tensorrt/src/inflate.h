// Decompression of zlib streams (RFC 1950, RFC 1951), and the checksum of the result.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace ssm_export {

// The content of a zlib stream that must be exactly `size` bytes. Throws Error: truncated, corrupt.
std::string inflate(std::string_view stream, size_t size);

// CRC-32 as zlib computes it.
uint32_t crc32(std::string_view bytes);

}  // namespace ssm_export
