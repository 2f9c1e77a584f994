// A GPU for tests on machines without one. Its memory is the host's and begins as NaN; what is put
// on the stream happens when somebody waits for it, as late as a real GPU may be; a capture records
// and does nothing, a launch of the graph puts what was recorded on the stream.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "cuda.h"

namespace ssm_runner {

class FakeGpu {
public:
    // The functions of its driver; there is one GPU at a time.
    Driver driver();
    FakeGpu();
    ~FakeGpu();

    // Puts work on the stream under a name that `history` shows.
    void put(std::string const& name, std::function<void()> work);

    // Whether an allocation holds so many bytes from an address on.
    bool holds(Address address, size_t bytes) const;

    struct Work {
        std::string name;
        std::function<void()> run;
    };
    std::map<std::string, int> failures;  // function to the error that it gives
    std::vector<std::string> history;     // what ran and was captured, in order
    std::map<Address, std::unique_ptr<std::vector<float>>> allocations;
    std::map<void*, std::unique_ptr<std::vector<float>>> pinned;
    std::vector<Work> stream;
    std::vector<Work> recorded;
    std::map<CudaExecutable, std::vector<Work>> graphs;
    bool capturing = false;
    int capability = 87;
    int devices = 1;
    int contexts = 0;
    int streams = 0;
};

}  // namespace ssm_runner
