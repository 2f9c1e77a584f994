#include "inflate.h"

#include <algorithm>
#include <array>
#include <vector>

#include "text.h"

namespace ssm_export {
namespace {

constexpr int kMaxBits = 15;
constexpr int kFastBits = 9;

// Bits of the stream, least significant first.
class Bits {
public:
    explicit Bits(std::string_view bytes) : bytes_(bytes) {}

    // Makes `count` ≤ 25 bits available where the stream has them; gives what is there, padded by 0.
    uint32_t peek(int count) {
        while (held_ < count && next_ < bytes_.size()) {
            buffer_ |= static_cast<uint64_t>(static_cast<uint8_t>(bytes_[next_++])) << held_;
            held_ += 8;
        }
        return static_cast<uint32_t>(buffer_ & ((uint64_t{1} << count) - 1));
    }

    void drop(int count) {
        if (count > held_) {
            fail("the compressed data end too early");
        }
        buffer_ >>= count;
        held_ -= count;
    }

    uint32_t take(int count) {
        uint32_t const bits = peek(count);
        drop(count);
        return bits;
    }

    // Forgets the rest of a byte, and gives the position of the next one.
    size_t align() {
        drop(held_ % 8);
        size_t const position = next_ - static_cast<size_t>(held_ / 8);
        return position;
    }

    void seek(size_t position) {
        next_ = position;
        buffer_ = 0;
        held_ = 0;
    }

private:
    std::string_view bytes_;
    size_t next_ = 0;
    uint64_t buffer_ = 0;
    int held_ = 0;
};

// A canonical Huffman code: short codes by table, long ones by walking their lengths.
class Code {
public:
    Code(uint8_t const* lengths, int count) {
        std::array<int, kMaxBits + 1> used{};
        for (int symbol = 0; symbol < count; ++symbol) {
            ++used[lengths[symbol]];
        }
        used[0] = 0;
        int left = 1;
        for (int bits = 1; bits <= kMaxBits; ++bits) {
            left = 2 * left - used[bits];
            if (left < 0) {
                fail("a Huffman code of the compressed data is oversubscribed");
            }
            count_[bits] = used[bits];
        }
        std::array<int, kMaxBits + 2> start{};
        std::array<int, kMaxBits + 2> first{};
        for (int bits = 1; bits <= kMaxBits; ++bits) {
            start[bits + 1] = start[bits] + used[bits];
            first[bits + 1] = (first[bits] + used[bits]) << 1;
        }
        symbols_.resize(static_cast<size_t>(start[kMaxBits + 1]));
        auto slot = start;
        for (int symbol = 0; symbol < count; ++symbol) {
            int const bits = lengths[symbol];
            if (bits == 0) {
                continue;
            }
            int const place = slot[bits]++;
            symbols_[static_cast<size_t>(place)] = static_cast<uint16_t>(symbol);
            if (bits <= kFastBits) {
                int const code = first[bits] + place - start[bits];
                int turned = 0;
                for (int i = 0; i < bits; ++i) {
                    turned |= ((code >> i) & 1) << (bits - 1 - i);
                }
                for (int entry = turned; entry < (1 << kFastBits); entry += 1 << bits) {
                    fast_[static_cast<size_t>(entry)] =
                        static_cast<uint16_t>(symbol | (bits << kFastShift));
                }
            }
        }
    }

    int decode(Bits& bits) const {
        uint32_t const ahead = bits.peek(kMaxBits);
        uint16_t const entry = fast_[ahead & ((1U << kFastBits) - 1)];
        if (entry != 0) {
            bits.drop(entry >> kFastShift);
            return entry & ((1 << kFastShift) - 1);
        }
        int code = 0;
        int first = 0;
        int index = 0;
        for (int length = 1; length <= kMaxBits; ++length) {
            code |= static_cast<int>((ahead >> (length - 1)) & 1);
            int const count = count_[static_cast<size_t>(length)];
            if (code - count < first) {
                bits.drop(length);
                return symbols_[static_cast<size_t>(index + code - first)];
            }
            index += count;
            first = (first + count) << 1;
            code <<= 1;
        }
        fail("the compressed data hold a code that stands for nothing");
    }

private:
    static constexpr int kFastShift = 9;  // symbols are below 512, lengths below 16
    std::array<int, kMaxBits + 1> count_{};
    std::array<uint16_t, 1 << kFastBits> fast_{};
    std::vector<uint16_t> symbols_;
};

constexpr std::array<uint16_t, 29> kLengthBase{3,  4,  5,  6,  7,  8,  9,  10, 11,  13,
                                               15, 17, 19, 23, 27, 31, 35, 43, 51,  59,
                                               67, 83, 99, 115, 131, 163, 195, 227, 258};
constexpr std::array<uint8_t, 29> kLengthBits{0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2,
                                              2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0};
constexpr std::array<uint16_t, 30> kDistanceBase{
    1,   2,   3,   4,   5,   7,    9,    13,   17,   25,   33,   49,   65,    97,    129,
    193, 257, 385, 513, 769, 1025, 1537, 2049, 3073, 4097, 6145, 8193, 12289, 16385, 24577};

Code fixed_code(bool literals) {
    std::array<uint8_t, 288> lengths{};
    if (!literals) {
        std::fill_n(lengths.begin(), 30, uint8_t{5});
        return Code(lengths.data(), 30);
    }
    std::fill(lengths.begin(), lengths.begin() + 144, uint8_t{8});
    std::fill(lengths.begin() + 144, lengths.begin() + 256, uint8_t{9});
    std::fill(lengths.begin() + 256, lengths.begin() + 280, uint8_t{7});
    std::fill(lengths.begin() + 280, lengths.end(), uint8_t{8});
    return Code(lengths.data(), 288);
}

void copy_stored(Bits& bits, std::string_view stream, std::string& out, size_t size) {
    size_t const at = bits.align();
    if (stream.size() - at < 4) {
        fail("the compressed data end too early");
    }
    auto const byte = [&](size_t i) { return static_cast<uint8_t>(stream[at + i]); };
    uint32_t const length = byte(0) | (byte(1) << 8);
    uint32_t const inverted = byte(2) | (byte(3) << 8);
    if (length != (inverted ^ 0xffffU)) {
        fail("a stored block of the compressed data has a wrong length");
    }
    if (stream.size() - at - 4 < length || size - out.size() < length) {
        fail("a stored block of the compressed data is too long");
    }
    out.append(stream.substr(at + 4, length));
    bits.seek(at + 4 + length);
}

void copy_coded(
    Bits& bits, Code const& literals, Code const& distances, std::string& out, size_t size) {
    for (;;) {
        int const symbol = literals.decode(bits);
        if (symbol == 256) {
            return;
        }
        if (symbol < 256) {
            if (out.size() == size) {
                fail("the compressed data hold more than they should");
            }
            out.push_back(static_cast<char>(symbol));
            continue;
        }
        if (symbol > 285) {
            fail("the compressed data hold a code that stands for nothing");
        }
        auto const which = static_cast<size_t>(symbol - 257);
        size_t const length = kLengthBase[which] + bits.take(kLengthBits[which]);
        auto const far = static_cast<size_t>(distances.decode(bits));
        if (far > 29) {
            fail("the compressed data hold a code that stands for nothing");
        }
        int const extra = far < 4 ? 0 : static_cast<int>(far / 2) - 1;
        size_t const distance = kDistanceBase[far] + bits.take(extra);
        if (distance > out.size()) {
            fail("the compressed data refer to what is before their beginning");
        }
        if (size - out.size() < length) {
            fail("the compressed data hold more than they should");
        }
        for (size_t i = 0; i < length; ++i) {
            out.push_back(out[out.size() - distance]);
        }
    }
}

void copy_dynamic(Bits& bits, std::string& out, size_t size) {
    constexpr std::array<uint8_t, 19> order{16, 17, 18, 0, 8,  7, 9,  6, 10, 5,
                                            11, 4,  12, 3, 13, 2, 14, 1, 15};
    int const literals = static_cast<int>(bits.take(5)) + 257;
    int const distances = static_cast<int>(bits.take(5)) + 1;
    int const given = static_cast<int>(bits.take(4)) + 4;
    if (literals > 286 || distances > 30) {
        fail("a block of the compressed data has too many codes");
    }
    std::array<uint8_t, 19> meta{};
    for (int i = 0; i < given; ++i) {
        meta[order[static_cast<size_t>(i)]] = static_cast<uint8_t>(bits.take(3));
    }
    Code const code(meta.data(), 19);
    std::array<uint8_t, 316> lengths{};
    int filled = 0;
    while (filled < literals + distances) {
        int const symbol = code.decode(bits);
        if (symbol < 16) {
            lengths[static_cast<size_t>(filled++)] = static_cast<uint8_t>(symbol);
            continue;
        }
        if (symbol == 16 && filled == 0) {
            fail("a block of the compressed data repeats a code length that is not there");
        }
        uint8_t const value = symbol == 16 ? lengths[static_cast<size_t>(filled - 1)] : uint8_t{0};
        int const times = symbol == 16   ? 3 + static_cast<int>(bits.take(2))
                          : symbol == 17 ? 3 + static_cast<int>(bits.take(3))
                                         : 11 + static_cast<int>(bits.take(7));
        if (filled + times > literals + distances) {
            fail("a block of the compressed data has too many codes");
        }
        std::fill_n(lengths.begin() + filled, times, value);
        filled += times;
    }
    if (lengths[256] == 0) {
        fail("a block of the compressed data has no end");
    }
    copy_coded(bits, Code(lengths.data(), literals), Code(lengths.data() + literals, distances),
               out, size);
}

uint32_t adler32(std::string_view bytes) {
    uint32_t a = 1;
    uint32_t b = 0;
    for (size_t at = 0; at < bytes.size();) {
        size_t const end = std::min(bytes.size(), at + 5552);
        for (; at < end; ++at) {
            a += static_cast<uint8_t>(bytes[at]);
            b += a;
        }
        a %= 65521;
        b %= 65521;
    }
    return (b << 16) | a;
}

}  // namespace

std::string inflate(std::string_view stream, size_t size) {
    auto const head = [&](size_t i) { return static_cast<uint8_t>(stream[i]); };
    if (stream.size() < 6 || (head(0) & 15) != 8 || (head(0) * 256 + head(1)) % 31 != 0 ||
        (head(1) & 32) != 0) {
        fail("the compressed data are no zlib stream");
    }
    std::string_view const body = stream.substr(2);
    Bits bits(body);
    std::string out;
    out.reserve(size);
    bool last = false;
    while (!last) {
        last = bits.take(1) != 0;
        switch (bits.take(2)) {
        case 0: copy_stored(bits, body, out, size); break;
        case 1: copy_coded(bits, fixed_code(true), fixed_code(false), out, size); break;
        case 2: copy_dynamic(bits, out, size); break;
        default: fail("the compressed data hold a block of an unknown kind");
        }
    }
    size_t const at = bits.align();
    if (out.size() != size) {
        fail("the compressed data hold ", out.size(), " bytes, not ", size);
    }
    if (body.size() < at || body.size() - at != 4) {
        fail("the compressed data do not end with their checksum");
    }
    uint32_t sum = 0;
    for (size_t i = 0; i < 4; ++i) {
        sum = (sum << 8) | static_cast<uint8_t>(body[at + i]);
    }
    if (sum != adler32(out)) {
        fail("the compressed data do not match their checksum");
    }
    return out;
}

uint32_t crc32(std::string_view bytes) {
    static auto const table = [] {
        std::array<uint32_t, 256> made{};
        for (uint32_t i = 0; i < 256; ++i) {
            uint32_t value = i;
            for (int bit = 0; bit < 8; ++bit) {
                value = (value >> 1) ^ ((value & 1) != 0 ? 0xedb88320U : 0U);
            }
            made[i] = value;
        }
        return made;
    }();
    uint32_t value = 0xffffffffU;
    for (char const byte : bytes) {
        value = (value >> 8) ^ table[(value ^ static_cast<uint8_t>(byte)) & 255];
    }
    return value ^ 0xffffffffU;
}

}  // namespace ssm_export
