// Where the states live on the device, and which buffer is the past and which the present.
//
// An engine whose scans are our plugins reads all of a state before it writes any of it, so past
// and present are one buffer. TensorRT promises that of no kernel of its own: for engines of
// standard operators every state has two buffers, which change roles after every run.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

namespace ssm_runner {

using Address = unsigned long long;

class StateBuffers {
public:
    // `allocate` gives the address of a buffer of so many bytes; `bytes` has one size per state.
    template <typename Allocate>
    StateBuffers(std::vector<int64_t> bytes, bool in_place, Allocate allocate)
        : bytes_(std::move(bytes)), in_place_(in_place) {
        for (int64_t const size : bytes_) {
            Address const first = allocate(size);
            held_.push_back({first, in_place ? first : allocate(size)});
        }
    }

    size_t count() const { return bytes_.size(); }
    int64_t bytes(size_t state) const { return bytes_[state]; }
    int64_t total_bytes() const {
        int64_t total = 0;
        for (int64_t const size : bytes_) {
            total += size * (in_place_ ? 1 : 2);
        }
        return total;
    }

    // In how many ways a run can be bound: a CUDA graph holds addresses, so there is one for each.
    int turns() const { return in_place_ ? 1 : 2; }
    // The way of the next run.
    int turn() const { return turn_; }

    Address past(size_t state, int turn) const { return at(state, turn); }
    Address present(size_t state, int turn) const { return at(state, turn + 1); }
    Address past(size_t state) const { return past(state, turn_); }
    Address present(size_t state) const { return present(state, turn_); }

    // After a run: what was present is past.
    void advance() { turn_ = (turn_ + 1) % turns(); }

private:
    Address at(size_t state, int turn) const {
        return turn % 2 == 0 ? held_[state].first : held_[state].second;
    }

    std::vector<int64_t> bytes_;
    std::vector<std::pair<Address, Address>> held_;
    bool in_place_;
    int turn_ = 0;
};

}  // namespace ssm_runner
