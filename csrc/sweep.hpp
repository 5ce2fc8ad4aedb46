// One step over a range of rows, in place: fire, perceive, update, band by band.
//
// A band is the fewest whole rows that hold enough firing cells to fill tiles. Its cells are all computed
// before any is changed; then the old values of its last rows are kept for the next band, and the changes are
// added. So a step needs the old values of a few rows, not a second copy of the image.
#pragma once

#include <vector>

#include "rule.hpp"

namespace nca {

// One image of a batch and its fire masks.
struct Image {
    float* state;
    int height, width;
    size_t row_floats;
    const uint8_t* masks; // of step 0, or null
    size_t mask_stride;   // from step to step
    FireRow fire;

    const uint8_t* mask(int step, int y) const {
        return masks + step * mask_stride + static_cast<size_t>(y) * width;
    }
    float* row(int y) const { return state + y * row_floats; }
};

// Image number `member` of a batch (count, height, width, channels).
Image image_of(const Rule::Packed& rule, float* state, size_t count, int height, int width, const Fire& fire,
               size_t member);

// Throws std::invalid_argument where the image is too small for reflect padding.
void check_size(const Rule::Packed& rule, int height, int width);

// Old values of the rows just outside a thread's range; null where the image ends.
struct Edges {
    const float* above = nullptr;
    const float* below = nullptr;
};

// What one thread needs, allocated before the first step.
class Sweep {
  public:
    Sweep(const Rule::Packed& rule, int width);

    // One step of rows first <= y < last.
    void step(const Image& image, int first, int last, int step, const Edges& edges);

    // The parts of a step, for those who need what it computes on the way and change nothing.
    void start(const Image& image) { start(image, 0, image.height, {}, false); }
    int fill_band(int y, int step);      // lists firing cells; returns the row after the band
    int cells() const { return cells_; } // in the band
    int block() const { return block_; } // most cells of one call of hide
    int hide(int begin, int end);        // perceives and computes the hidden layer; returns the tiles
    const float* const* neighbours(int tap) const {
        return neighbours_.data() + static_cast<size_t>(tap) * block_;
    }
    const float* perceived() const { return perceived_.data(); } // a cell's are perceived_stride() apart
    int perceived_stride() const { return perceived_stride_; }
    const float* hidden() const { return hidden_.data(); } // a cell's are fc0.panels().outputs apart
    const float* zeros() const { return zeros_.data(); }   // what neighbours outside the image point at

  private:
    struct BandRow {
        int y;
        int end; // index after its last firing cell
    };

    void start(const Image& image, int first, int last, const Edges& edges, bool in_place);
    void list_row(int y, int step);
    const float* old_row(int y) const;
    int padded(int position, int size) const;
    void point_at_neighbours(int begin, int end, int padded_end);
    void compute(int begin, int end);
    void keep_last_rows();
    void add_changes();

    const Rule::Packed& rule_;
    const Kernels& kernels_;
    const int taps_side_, taps_, block_;

    // the call in progress
    const Image* image_ = nullptr;
    Edges edges_;
    bool in_place_ = true;
    int first_ = 0, last_ = 0;
    int band_first_ = 0, band_last_ = 0;

    std::vector<uint8_t> mask_;
    std::vector<int> columns_; // of the band's firing cells, row by row
    std::vector<BandRow> band_;
    int cells_ = 0;
    std::vector<const float*> neighbours_; // [tap][cell of the block]
    std::vector<const float*> perceived_rows_, hidden_rows_;
    std::vector<Segment> perceive_, fc0_;
    Segment fc1_;
    Buffer perceived_, hidden_, changes_, kept_, zeros_;
    int perceived_stride_;
};

} // namespace nca
