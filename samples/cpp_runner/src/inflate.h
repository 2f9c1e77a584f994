// Decompression of raw deflate data (RFC 1951), as zip files hold them, and the checksum of zip.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace ssm_runner {

// What raw deflate data hold, which must be `size` bytes. Throws std::runtime_error.
std::string inflate(std::string_view data, size_t size);

uint32_t crc32(std::string_view bytes);

}  // namespace ssm_runner
