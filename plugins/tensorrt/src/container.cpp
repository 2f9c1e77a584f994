#include "container.h"

#include <algorithm>
#include <map>
#include <mutex>

#include "base64.h"
#include "header.h"
#include "inflate.h"
#include "text.h"

namespace ssm_export {
namespace {

constexpr char kMagicText[] = "U1NNS1JO";  // the first six bytes of a section in base64
constexpr size_t kHead = 24;
constexpr size_t kMaxRaw = size_t{1} << 30;
constexpr size_t kMaxRatio = 1032;  // the most that a deflate stream can grow

uint32_t number_at(std::string_view bytes, size_t at) {
    uint32_t value = 0;
    for (size_t i = 0; i < 4; ++i) {
        value |= static_cast<uint32_t>(static_cast<uint8_t>(bytes[at + i])) << (8 * i);
    }
    return value;
}

uint64_t fingerprint(std::string_view bytes) {
    uint64_t value = 0xcbf29ce484222325ULL;
    for (char const byte : bytes) {
        value = (value ^ static_cast<uint8_t>(byte)) * 0x100000001b3ULL;
    }
    return value;
}

// The length of the section that `bytes` begin with, its parts inside the bytes that there are.
size_t measured(std::string_view bytes) {
    std::string_view const magic(kMagic);
    size_t const seen = std::min(bytes.size(), magic.size());
    if (bytes.substr(0, 6) == magic.substr(0, 6) && seen == magic.size() &&
        bytes.substr(6, 2) != magic.substr(6)) {
        fail("they are kernels of format ", bytes.substr(6, 2), ", this library reads format ",
             magic.substr(6), ": use the library and the kernels of one ssm-export release");
    }
    if (bytes.substr(0, seen) != magic.substr(0, seen)) {
        fail("they are no compiled kernels (they do not begin with ", magic, ")");
    }
    if (bytes.size() < kHead) {
        fail("they are truncated: ", bytes.size(), " bytes of a section's first ", kHead);
    }
    size_t const whole = kHead + size_t{number_at(bytes, 8)} + size_t{number_at(bytes, 12)};
    if (bytes.size() < whole) {
        fail("they are truncated: ", bytes.size(), " bytes of a section of ", whole);
    }
    return whole;
}

std::shared_ptr<Section const> read_section(std::string_view bytes) {
    auto section = std::make_shared<Section>();
    size_t const header = number_at(bytes, 8);
    section->bytes = std::string(bytes);
    section->hash = fingerprint(bytes);
    section->compressed_at = kHead + header;
    section->raw_size = number_at(bytes, 16);
    section->checksum = number_at(bytes, 20);
    size_t const compressed = bytes.size() - section->compressed_at;
    if (section->raw_size > kMaxRaw || section->raw_size > compressed * kMaxRatio) {
        fail("they are corrupt: ", compressed, " compressed bytes cannot hold ",
             section->raw_size);
    }
    read_header(bytes.substr(kHead, header), *section);
    section->image_bytes();
    return section;
}

// A section like one that is in use already is that one: the layers of a model share theirs.
std::shared_ptr<Section const> shared_section(std::string_view bytes) {
    static std::mutex mutex;
    static std::multimap<uint64_t, std::weak_ptr<Section const>> known;
    uint64_t const hash = fingerprint(bytes);
    std::lock_guard<std::mutex> const lock(mutex);
    auto [at, end] = known.equal_range(hash);
    while (at != end) {
        auto const section = at->second.lock();
        if (section != nullptr && section->bytes == bytes) {
            return section;
        }
        at = section == nullptr ? known.erase(at) : std::next(at);
    }
    auto const section = read_section(bytes);
    known.emplace(hash, section);
    return section;
}

}  // namespace

std::string Section::image_bytes() const {
    std::string raw = inflate(std::string_view(bytes).substr(compressed_at), raw_size);
    if (crc32(raw) != checksum) {
        fail("the kernel images do not match their checksum");
    }
    return raw;
}

std::string Section::show(Operand const& operand) const {
    auto const size = [&](Dimension const& dimension) {
        return dimension.symbol < 0 ? std::to_string(dimension.value)
                                    : symbols[static_cast<size_t>(dimension.symbol)];
    };
    return text(operand.port, " (", joined(operand.shape, ", ", size), ") ", operand.type);
}

Attribute const* Section::attribute(std::string_view name) const {
    auto const found = std::find_if(attributes.begin(), attributes.end(),
                                    [&](Attribute const& one) { return one.name == name; });
    return found == attributes.end() ? nullptr : &*found;
}

Sections read_sections(std::string_view bytes, std::string const& where) {
    Sections sections;
    std::string decoded;
    try {
        if (bytes.substr(0, std::size(kMagicText) - 1) == kMagicText) {
            decoded = from_base64(bytes.substr(0, bytes.find_last_not_of('\0') + 1));
            bytes = decoded;
        }
        while (bytes.find_first_not_of('\0') != std::string_view::npos) {
            size_t const whole = measured(bytes);
            sections.push_back(shared_section(bytes.substr(0, whole)));
            bytes.remove_prefix(whole);
        }
    } catch (Error const& error) {
        fail(where, ", section ", sections.size() + 1, ": ", error.what());
    }
    if (sections.empty()) {
        fail(where, ": there are no kernels in it");
    }
    return sections;
}

}  // namespace ssm_export
