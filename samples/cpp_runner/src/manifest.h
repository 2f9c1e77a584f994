// What manifest.json of a bundle says, as far as running its engines needs it.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "tensor_type.h"

namespace ssm_runner {

struct FileEntry {
    std::string path;  // in the bundle
    int64_t bytes = 0;
    std::string sha256;
};

// A recurrent state: an input and an output of every graph. Axis 0 is the batch.
struct State {
    std::string name_in;
    std::string name_out;
    Type type = Type::other;
    std::vector<int64_t> sizes;  // of the other axes

    int64_t bytes_per_row() const {
        int64_t bytes = bytes_of(type);
        for (int64_t const size : sizes) {
            bytes *= size;
        }
        return bytes;
    }
};

struct Range {
    int64_t smallest = 1;
    int64_t largest = 1;
};

struct EngineEntry {
    std::string form;  // step, prefill, or unified for both
    std::string target;
    std::string kind;  // tensorrt or tensorrt-rtx
    FileEntry file;
    std::string version;  // of the library that built it
    std::string platform;
    std::string capability;  // of the GPU: 8.7, or 8.6+ for this one and later ones
    Range batch;
    Range time;
    std::string plugin_library;  // SHA-256 of the one that it was built with; empty without plugins
};

// A recorded case: inputs and what PyTorch made of them.
struct ParityEntry {
    std::string kind;
    FileEntry file;
};

struct Manifest {
    std::string folder;
    std::string family;
    std::string precision;
    std::string state_type;
    bool all_logits = false;
    bool ragged = false;
    int64_t vocabulary = 0;
    int64_t layers = 0;
    std::vector<State> states;
    std::vector<EngineEntry> engines;
    std::vector<ParityEntry> parity;
    // Largest error of an element of the logits in PyTorch itself, by kind of case.
    std::map<std::string, double> rounding;

    std::string path(FileEntry const& file) const { return folder + "/" + file.path; }
    int64_t state_bytes_per_row() const;
};

// Reads BUNDLE/manifest.json. Throws Error: no such folder, no manifest, a broken or newer one.
Manifest read_manifest(std::string const& folder);

// Compares an engine file with the manifest: it is there, has its size and its SHA-256.
void check_file(Manifest const& manifest, FileEntry const& file, std::string const& fix);

}  // namespace ssm_runner
