#include "inflate.h"

#include <array>
#include <stdexcept>
#include <utility>
#include <vector>

namespace ssm_runner {
namespace {

constexpr size_t kMaxBits = 15;

[[noreturn]] void corrupt() { throw std::runtime_error("its compressed data are damaged"); }

// Bits of the data, least significant first.
class Bits {
public:
    explicit Bits(std::string_view data) : data_(data) {}

    uint32_t take(int count) {
        uint32_t out = 0;
        for (int i = 0; i < count; ++i) {
            if (at_ >= data_.size() * 8) {
                corrupt();
            }
            out |= ((static_cast<uint8_t>(data_[at_ / 8]) >> (at_ % 8)) & 1U) << i;
            ++at_;
        }
        return out;
    }

    // Whole bytes, from the next boundary of one.
    std::string_view bytes(size_t count) {
        at_ = (at_ + 7) / 8 * 8;
        if (count > data_.size() - at_ / 8) {
            corrupt();
        }
        std::string_view const out = data_.substr(at_ / 8, count);
        at_ += count * 8;
        return out;
    }

private:
    std::string_view data_;
    size_t at_ = 0;
};

// A Huffman code by the lengths of its words: words of one length are consecutive numbers.
class Code {
public:
    Code(uint8_t const* lengths, size_t count) {
        for (size_t symbol = 0; symbol < count; ++symbol) {
            ++count_[lengths[symbol]];
        }
        count_[0] = 0;
        int room = 1;
        for (size_t length = 1; length <= kMaxBits; ++length) {
            room = room * 2 - count_[length];
            if (room < 0) {
                corrupt();
            }
            for (size_t symbol = 0; symbol < count; ++symbol) {
                if (lengths[symbol] == length) {
                    symbols_.push_back(static_cast<uint16_t>(symbol));
                }
            }
        }
    }

    uint32_t read(Bits& bits) const {
        int word = 0, first = 0, index = 0;
        for (size_t length = 1; length <= kMaxBits; ++length) {
            word |= static_cast<int>(bits.take(1));
            if (word - first < count_[length]) {
                return symbols_[static_cast<size_t>(index + word - first)];
            }
            index += count_[length];
            first = (first + count_[length]) * 2;
            word *= 2;
        }
        corrupt();
    }

private:
    std::array<int, kMaxBits + 1> count_{};
    std::vector<uint16_t> symbols_;
};

// A value of a code with extra bits: the smallest that has as many of them, and the bits.
uint32_t extended(Bits& bits, uint32_t symbol, uint32_t per_length, uint32_t base) {
    if (symbol < per_length * 2) {
        return base + symbol;
    }
    uint32_t const extra = symbol / per_length - 1;
    uint32_t const start = (per_length + symbol % per_length) << extra;
    return base + start + bits.take(static_cast<int>(extra));
}

void copy(Bits& bits, Code const& literals, Code const& distances, std::string& out, size_t size) {
    while (true) {
        uint32_t const symbol = literals.read(bits);
        if (symbol == 256) {
            return;
        }
        if (symbol < 256) {
            out += static_cast<char>(symbol);
        } else {
            if (symbol > 285) {
                corrupt();
            }
            uint32_t const length = symbol == 285 ? 258 : extended(bits, symbol - 257, 4, 3);
            uint32_t const code = distances.read(bits);
            if (code > 29) {
                corrupt();
            }
            size_t const distance = extended(bits, code, 2, 1);
            if (distance > out.size()) {
                corrupt();
            }
            for (uint32_t i = 0; i < length; ++i) {
                out += out[out.size() - distance];
            }
        }
        if (out.size() > size) {
            corrupt();
        }
    }
}

// The two codes of a block that brings its own.
std::pair<Code, Code> read_codes(Bits& bits) {
    static constexpr uint8_t kOrder[] = {16, 17, 18, 0, 8,  7, 9,  6, 10, 5,
                                         11, 4,  12, 3, 13, 2, 14, 1, 15};
    size_t const literals = bits.take(5) + 257, distances = bits.take(5) + 1;
    size_t const given = bits.take(4) + 4;
    std::array<uint8_t, 19> lengths_of_lengths{};
    for (size_t i = 0; i < given; ++i) {
        lengths_of_lengths[kOrder[i]] = static_cast<uint8_t>(bits.take(3));
    }
    Code const code(lengths_of_lengths.data(), lengths_of_lengths.size());
    std::vector<uint8_t> lengths;
    while (lengths.size() < literals + distances) {
        uint32_t const symbol = code.read(bits);
        if (symbol < 16) {
            lengths.push_back(static_cast<uint8_t>(symbol));
            continue;
        }
        if (symbol == 16 && lengths.empty()) {
            corrupt();
        }
        uint8_t const repeated = symbol == 16 ? lengths.back() : uint8_t{0};
        uint32_t const times = symbol == 16   ? 3 + bits.take(2)
                               : symbol == 17 ? 3 + bits.take(3)
                                              : 11 + bits.take(7);
        lengths.insert(lengths.end(), times, repeated);
    }
    if (lengths.size() > literals + distances) {
        corrupt();
    }
    return {Code(lengths.data(), literals), Code(lengths.data() + literals, distances)};
}

std::pair<Code, Code> fixed_codes() {
    std::array<uint8_t, 288> literals{};
    for (size_t i = 0; i < literals.size(); ++i) {
        literals[i] = i < 144 ? 8 : i < 256 ? 9 : i < 280 ? 7 : 8;
    }
    std::array<uint8_t, 30> distances{};
    distances.fill(5);
    return {Code(literals.data(), literals.size()), Code(distances.data(), distances.size())};
}

}  // namespace

std::string inflate(std::string_view data, size_t size) {
    Bits bits(data);
    std::string out;
    bool last = false;
    while (!last) {
        last = bits.take(1) != 0;
        uint32_t const kind = bits.take(2);
        if (kind == 0) {
            std::string_view const sizes = bits.bytes(4);
            auto const at = [&](size_t i) { return static_cast<uint8_t>(sizes[i]); };
            if ((at(0) ^ at(2)) != 255 || (at(1) ^ at(3)) != 255) {
                corrupt();
            }
            out += bits.bytes(static_cast<size_t>(at(0) + 256 * at(1)));
        } else if (kind == 3) {
            corrupt();
        } else {
            auto const [literals, distances] = kind == 1 ? fixed_codes() : read_codes(bits);
            copy(bits, literals, distances, out, size);
        }
    }
    if (out.size() != size) {
        corrupt();
    }
    return out;
}

uint32_t crc32(std::string_view bytes) {
    static auto const table = [] {
        std::array<uint32_t, 256> made{};
        for (uint32_t i = 0; i < 256; ++i) {
            made[i] = i;
            for (int bit = 0; bit < 8; ++bit) {
                made[i] = (made[i] >> 1) ^ ((made[i] & 1) != 0 ? 0xedb88320U : 0U);
            }
        }
        return made;
    }();
    uint32_t out = 0xffffffff;
    for (char const byte : bytes) {
        out = (out >> 8) ^ table[(out ^ static_cast<uint8_t>(byte)) & 255];
    }
    return ~out;
}

}  // namespace ssm_runner
