// SHA-256 of a file (FIPS 180-4), read in pieces: the manifest has one for every engine.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <string>
#include <vector>

namespace ssm_runner {

class Sha256 {
public:
    void add(unsigned char const* bytes, size_t count) {
        size_ += count;
        while (count > 0) {
            size_t const some = std::min(count, block_.size() - held_);
            std::memcpy(block_.data() + held_, bytes, some);
            held_ += some;
            bytes += some;
            count -= some;
            if (held_ == block_.size()) {
                mix();
                held_ = 0;
            }
        }
    }

    std::string hex() {
        uint64_t const bits = size_ * 8;
        unsigned char const end = 0x80, zero = 0;
        add(&end, 1);
        while (held_ != 56) {
            add(&zero, 1);
        }
        for (int shift = 56; shift >= 0; shift -= 8) {
            auto const byte = static_cast<unsigned char>(bits >> shift);
            add(&byte, 1);
        }
        std::string out;
        char word[9];
        for (uint32_t const one : state_) {
            std::snprintf(word, sizeof word, "%08x", one);
            out += word;
        }
        return out;
    }

private:
    static uint32_t turn(uint32_t x, int by) { return (x >> by) | (x << (32 - by)); }

    void mix() {
        static constexpr uint32_t kRound[64] = {
            0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4,
            0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe,
            0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f,
            0x4a7484aa, 0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7,
            0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967, 0x27b70a85, 0x2e1b2138, 0x4d2c6dfc,
            0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b,
            0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116,
            0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
            0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7,
            0xc67178f2};
        uint32_t w[64];
        for (size_t i = 0; i < 16; ++i) {
            w[i] = uint32_t{block_[4 * i]} << 24 | uint32_t{block_[4 * i + 1]} << 16 |
                   uint32_t{block_[4 * i + 2]} << 8 | uint32_t{block_[4 * i + 3]};
        }
        for (size_t i = 16; i < 64; ++i) {
            uint32_t const a = w[i - 15], b = w[i - 2];
            w[i] = w[i - 16] + (turn(a, 7) ^ turn(a, 18) ^ (a >> 3)) + w[i - 7] +
                   (turn(b, 17) ^ turn(b, 19) ^ (b >> 10));
        }
        std::array<uint32_t, 8> s = state_;
        for (size_t i = 0; i < 64; ++i) {
            uint32_t const first = s[7] + (turn(s[4], 6) ^ turn(s[4], 11) ^ turn(s[4], 25)) +
                                   ((s[4] & s[5]) ^ (~s[4] & s[6])) + kRound[i] + w[i];
            uint32_t const second = (turn(s[0], 2) ^ turn(s[0], 13) ^ turn(s[0], 22)) +
                                    ((s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]));
            s = {first + second, s[0], s[1], s[2], s[3] + first, s[4], s[5], s[6]};
        }
        for (size_t i = 0; i < 8; ++i) {
            state_[i] += s[i];
        }
    }

    std::array<uint32_t, 8> state_{0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                   0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    std::array<unsigned char, 64> block_{};
    size_t held_ = 0;
    uint64_t size_ = 0;
};

// Of a whole file, as the manifest writes it.
inline std::string sha256_of(std::string const& path) {
    std::ifstream file(path, std::ios::binary);
    std::vector<char> piece(1 << 20);
    Sha256 hash;
    while (file.read(piece.data(), static_cast<std::streamsize>(piece.size())), file.gcount() > 0) {
        hash.add(reinterpret_cast<unsigned char const*>(piece.data()),
                 static_cast<size_t>(file.gcount()));
    }
    return hash.hex();
}

}  // namespace ssm_runner
