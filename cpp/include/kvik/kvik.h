// All of Kvik's public interface. Reading order: model.h, generate.h, sampler.h,
// beam_search.h, attention.h,
// session.h.
#pragma once

#include "kvik/attention.h"
#include "kvik/beam_search.h"
#include "kvik/cache_type.h"
#include "kvik/dtype.h"
#include "kvik/error.h"
#include "kvik/generate.h"
#include "kvik/model.h"
#include "kvik/profile.h"
#include "kvik/sampler.h"
#include "kvik/session.h"
#include "kvik/tensor.h"
#include "kvik/version.h"
#include "kvik/weights.h"
