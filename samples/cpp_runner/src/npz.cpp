#include "npz.h"

#include <cstdlib>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <utility>
#include <string_view>

#include "error.h"
#include "inflate.h"

namespace ssm_runner {
namespace {

// Little-endian numbers of a file that may be cut off anywhere.
uint32_t number(std::string_view bytes, size_t at, int size) {
    if (at > bytes.size() || bytes.size() - at < static_cast<size_t>(size)) {
        throw std::runtime_error("it is cut off");
    }
    uint32_t out = 0;
    for (int i = 0; i < size; ++i) {
        out |= uint32_t{static_cast<uint8_t>(bytes[at + static_cast<size_t>(i)])} << (8 * i);
    }
    return out;
}

std::string_view part(std::string_view bytes, size_t at, size_t size) {
    if (at > bytes.size() || size > bytes.size() - at) {
        throw std::runtime_error("it is cut off");
    }
    return bytes.substr(at, size);
}

// A file of a zip archive, found through the directory at its end.
std::string unzip(std::string_view archive, std::string const& name) {
    size_t const end = archive.rfind("PK\x05\x06");
    if (end == std::string_view::npos) {
        throw std::runtime_error("it is no zip archive, or cut off");
    }
    size_t at = number(archive, end + 16, 4);
    for (uint32_t left = number(archive, end + 10, 2); left > 0; --left) {
        if (number(archive, at, 4) != 0x02014b50) {
            throw std::runtime_error("its directory is damaged");
        }
        uint32_t const method = number(archive, at + 10, 2);
        uint32_t const sum = number(archive, at + 16, 4);
        uint32_t const packed = number(archive, at + 20, 4);
        uint32_t const size = number(archive, at + 24, 4);
        uint32_t const name_size = number(archive, at + 28, 2);
        uint32_t const rest = number(archive, at + 30, 2) + number(archive, at + 32, 2);
        uint32_t const start = number(archive, at + 42, 4);
        if (part(archive, at + 46, name_size) == name) {
            size_t const data = start + size_t{30} + number(archive, start + size_t{26}, 2) +
                                number(archive, start + size_t{28}, 2);
            std::string_view const stored = part(archive, data, packed);
            if (method != 0 && method != 8) {
                throw std::runtime_error("it is compressed in an unknown way");
            }
            std::string out = method == 0 ? std::string(stored) : inflate(stored, size);
            if (crc32(out) != sum) {
                throw std::runtime_error("its checksum is another");
            }
            return out;
        }
        at += size_t{46} + name_size + rest;
    }
    throw std::runtime_error("it has no " + name);
}

// The value of a key of the header, a Python dictionary, from after the colon.
std::string_view value_of(std::string_view header, std::string const& key) {
    size_t const at = header.find("'" + key + "':");
    if (at == std::string_view::npos) {
        throw std::runtime_error("its header has no " + key);
    }
    size_t const start = header.find_first_not_of(' ', at + key.size() + 3);
    return start == std::string_view::npos ? "" : header.substr(start);
}

Array parse(std::string const& file) {
    if (part(file, 0, 6) != "\x93NUMPY") {
        throw std::runtime_error("it is no .npy file");
    }
    bool const short_header = number(file, 6, 1) == 1;
    size_t const size = number(file, 8, short_header ? 2 : 4);
    size_t const start = short_header ? 10 : 12;
    std::string_view const header = part(file, start, size);
    if (value_of(header, "fortran_order").substr(0, 5) != "False") {
        throw std::runtime_error("its axes are in Fortran's order");
    }
    static constexpr std::pair<char const*, Type> kTypes[] = {{"'<i8'", Type::int64},
                                                              {"'<i4'", Type::int32},
                                                              {"'<f4'", Type::float32},
                                                              {"'<f2'", Type::float16}};
    Array out;
    for (auto const& [name, type] : kTypes) {
        if (value_of(header, "descr").substr(0, 5) == name) {
            out.type = type;
        }
    }
    if (out.type == Type::other) {
        throw std::runtime_error("its type is another than int64, int32, float32 or float16");
    }
    static constexpr int64_t kMost = int64_t{1} << 31;  // so that a product of two is a number
    int64_t count = 1;
    std::string_view const shape = value_of(header, "shape");
    for (size_t i = 1; i < shape.size() && shape[i] != ')'; ++i) {
        if (shape[i] >= '0' && shape[i] <= '9') {
            char* after = nullptr;
            std::string const digits(shape.substr(i, 18));
            out.shape.push_back(std::strtoll(digits.c_str(), &after, 10));
            i += static_cast<size_t>(after - digits.c_str()) - 1;
            if (out.shape.back() > kMost || (count *= out.shape.back()) > kMost) {
                throw std::runtime_error("its header is damaged");
            }
        }
    }
    out.bytes = file.substr(start + size);
    if (static_cast<int64_t>(out.bytes.size()) != count * bytes_of(out.type)) {
        throw std::runtime_error("it has another size than its header says");
    }
    return out;
}

}  // namespace

std::vector<int64_t> Array::as_int64() const {
    std::vector<int64_t> out(static_cast<size_t>(count()));
    for (size_t i = 0; i < out.size(); ++i) {
        if (type == Type::int64) {
            std::memcpy(&out[i], bytes.data() + 8 * i, 8);
        } else {
            int32_t narrow = 0;
            std::memcpy(&narrow, bytes.data() + 4 * i, 4);
            out[i] = narrow;
        }
    }
    return out;
}

Array read_npz(std::string const& path, std::string const& name) {
    std::ifstream file(path, std::ios::binary);
    std::string const archive{std::istreambuf_iterator<char>(file), {}};
    if (!file) {
        throw Error(kMissingFile, "it cannot be read", path, "copy the bundle again, whole");
    }
    try {
        return parse(unzip(archive, name + ".npy"));
    } catch (std::runtime_error const& error) {
        throw Error(kNotABundle, text("array '", name, "': ", error.what()), path,
                    "copy the bundle again, whole");
    }
}

}  // namespace ssm_runner
